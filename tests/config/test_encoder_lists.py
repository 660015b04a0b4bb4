"""The fields of frozen encoders: lists of equal length, and what leaves the loss a feature."""

import pytest
from changed_config import changed

from drifting_jax.config import base_config, load_config, resolve, validate
from drifting_jax.config.stored import save_config
from drifting_jax.errors import UserError

LIST = {"pixel_encoders__kinds": ("resnet", "dinov2_b"), "pixel_encoders__paths": ("a", "b")}
NONE = {"encoder__kind": "none"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (LIST | {"pixel_encoders__paths": ("a",)}, r"paths must have an entry for each of .*'a'"),
        (LIST | {"pixel_encoders__weights": (1.0,)}, r"weights must have an entry for each of"),
        (LIST | {"pixel_encoders__weights": (1.0, -1.0)}, r"numbers of zero or above"),
        (LIST | {"pixel_encoders__weights": (1.0, "2")}, r"numbers of zero or above"),
        (LIST | {"pixel_encoders__kinds": ("resnet", 3)}, r"kinds must hold strings .* 3\)"),
        ({"pixel_encoders__resize": "cubic"}, r"resize must be one of 'auto', .*found 'cubic'"),
        ({"features__raw_weight": -0.5}, r"raw_weight must be zero or above; found -0\.5"),
        ({"features__total": "median"}, r"total must be one of 'sum', 'mean', 'mean_of_encoders'"),
        (NONE | {"encoder__path": "runs/mae"}, r"encoder\.path names an autoencoder"),
        (NONE | {"train__nearest_positives": 4}, r"nearest_positives finds them with the auto"),
        (NONE | {"features__raw": False, "features__input_rms": False}, r"without a feature"),
    ],
)
def test_fields_that_do_not_go_together(fields, message):
    with pytest.raises(UserError, match=message):
        validate(changed(**fields))


def test_a_run_that_trains_an_encoder_has_one():
    with pytest.raises(UserError, match=r"encoder\.kind must be 'autoencoder' in a run that"):
        validate(changed("encoder", **NONE))


def test_lists_are_stored_and_their_paths_begin_in_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/someone")
    config = base_config("generator")
    config.pixel_encoders.kinds = ("resnet", "dinov2_b")
    config.pixel_encoders.paths = ("~/a.pth", "hf://owner/repo")
    config.pixel_encoders.weights = (1.0, 0.5)
    found = resolve(config)
    assert found.pixel_encoders.paths == ("/home/someone/a.pth", "hf://owner/repo")
    save_config(tmp_path, config)
    assert load_config(tmp_path).pixel_encoders == found.pixel_encoders
