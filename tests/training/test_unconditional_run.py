"""cifar10:unconditional, scaled down, on random images: trained, cut off, resumed, measured."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from fake_extractor import make_extractor
from small_files import cifar_files, write_folder

from drifting_jax.config import file_beside, resolve
from drifting_jax.evaluation import image_evaluation, train_split
from drifting_jax.evaluation.image_evaluation import prepare_setup
from drifting_jax.evaluation.setup import Settings, generated_sample_sets
from drifting_jax.training import restore, run
from drifting_jax.workdir.metrics import read_metrics

CONFIGS = Path(__file__).parents[2] / "configs"
STEPS, SAVED = 6, 2
SMALL = {
    "log_every": 1,
    "mesh.data": 1,
    "data.flip": True,
    "extra_encoder.kind": "none",  # the pixels alone: DINOv2 takes too long
    "features.joint_scale": False,
    "model.width": 8,
    "model.dtype": "float32",
    "model.unet.multipliers": (1, 2),
    "model.unet.blocks_per_level": 1,
    "model.unet.attention_sides": (),
    "model.unet.groups": 4,
    "optim.warmup_steps": 2,
    "train.num_steps": STEPS,
    "train.generated_per_label": 8,
    "train.positives_per_label": 8,
    "train.microbatches": 2,
    "train.save_every": SAVED,
    "train.keep": 10,
    "train.sample_every": STEPS,
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Sharding info not provided:UserWarning"),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Its config, and the workdir of a run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("cifar")
    files, _ = cifar_files("cifar10", binary=True)
    config = file_beside(CONFIGS / "any.py", "cifar10.py").get_config("unconditional")
    config.update_from_flattened_dict(
        SMALL | {"data.path": str(write_folder(folder / "data", files))}
    )
    config = resolve(config)
    with pytest.MonkeyPatch.context() as patch:
        # The covariances of 3,072 pixels would take half a minute.
        patch.setattr(run, "evaluate_run", lambda *_, **__: [])
        assert run.run(config, workdir=folder / "run") == 0
        yield config, folder / "run"


def arrays(workdir: Path) -> dict[str, np.ndarray]:
    found = {}
    for item in ("state", "ema", "queue", "position"):
        tree = ocp.PyTreeCheckpointer().restore(workdir / "checkpoints" / str(STEPS) / item)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            found[item + jax.tree_util.keystr(path)] = np.asarray(leaf)
    return found


def test_a_run_that_was_cut_off_has_the_same_bits(trained, tmp_path):
    config, whole = trained
    cut = shutil.copytree(whole, tmp_path / "cut")
    for step in (cut / "checkpoints").iterdir():
        if step.name.isdecimal() and int(step.name) > SAVED:
            shutil.rmtree(step)
    assert run.run(config, workdir=cut) == 0
    expected = arrays(whole)
    for name, value in arrays(cut).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)
    slot = next(value for name, value in expected.items() if "slot" in name)
    epoch = next(value for name, value in expected.items() if "epoch" in name)
    assert (epoch[0], slot[0]) == divmod(STEPS * 8, 30)
    losses = [[line["loss"] for line in read_metrics(x, stage="generator")] for x in (whole, cut)]
    assert losses[0] == losses[1] and len(losses[0]) == STEPS


def test_it_samples_and_is_measured_against_its_training_split(trained, tmp_path, monkeypatch):
    config, workdir = trained
    generator = restore.load_run(workdir)
    assert generator.class_names == ["unlabelled"] and generator.step == STEPS
    monkeypatch.setattr(
        image_evaluation, "load_extractor", lambda name, weights, *, flag: make_extractor(name)
    )
    without, _ = prepare_setup(
        Settings(("fid",), 3, 0.0),
        out=tmp_path / "out",
        weights={"inception": "", "dinov2": ""},
        required=True,
        reference="",
        batch_size=8,
        keep_features=False,
        stopped=lambda: False,
    )
    setup = train_split.with_train_split(without, config.data)
    sets = train_split.recorded(generated_sample_sets(generator, count=20))
    image_evaluation.evaluate_images(setup, sets, title="run", notes=[], generator=generator)
    lines = (tmp_path / "out" / "figures.jsonl").read_text().splitlines()
    found = json.loads(lines[0])
    assert (found["figure"], found["protocol"], found["num_samples"]) == ("fid", "train_split", 20)
    assert (
        "all 30 images of the training split of cifar10, 32x32"
        in (tmp_path / "out" / "report.html").read_text()
    )
