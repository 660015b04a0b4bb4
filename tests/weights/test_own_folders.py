"""Folders for the Hub keep every bit, and what is wrong with one is said in a line."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax.traverse_util import flatten_dict

from drifting_jax.errors import UserError
from drifting_jax.models.dit import DiT
from drifting_jax.weights.networks import Network, load_network, save_network
from drifting_jax.weights.safetensors import read_safetensors, write_safetensors
from drifting_jax.weights.shapes import param_shapes

MODEL = DiT(
    image_size=4,
    in_channels=3,
    out_channels=3,
    patch_size=2,
    width=8,
    depth=1,
    num_heads=2,
    num_classes=2,
    num_context_tokens=1,
    num_style_books=2,
    styles_per_book=3,
    dtype=jnp.bfloat16,
)


@pytest.fixture(scope="module")
def network():
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), param_shapes(MODEL))
    return Network("generator", MODEL, {"params": params}, 12, 0.99, ("cat", "dög"), (1.0, 4.0))


@pytest.fixture
def folder(network, tmp_path):
    save_network(tmp_path / "hub", network, for_hub=True)
    return tmp_path / "hub"


def test_a_folder_keeps_every_bit_and_all_that_is_known(network, folder):
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}
    found = load_network(folder)
    assert (found.kind, found.model, found.step, found.ema_decay) == ("generator", MODEL, 12, 0.99)
    assert (found.class_names, found.alpha_range) == (("cat", "dög"), (1.0, 4.0))
    jax.tree.map(np.testing.assert_array_equal, found.variables, network.variables)


def test_others_read_the_tensors(network, folder):
    found = safetensors.numpy.load_file(folder / "model.safetensors")
    expected = flatten_dict(network.variables["params"], sep="/")
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


def test_tensors_of_every_form_come_back(tmp_path):
    given = {
        "scalar": np.float32(3).reshape(()),
        "none": np.zeros((0, 3), np.int64),
        "turned": np.arange(6, dtype=np.float16).reshape(2, 3).T,
        "half": np.asarray(jnp.arange(3, dtype=jnp.bfloat16)),
        "bytes": np.arange(5, dtype=np.uint8),
    }
    write_safetensors(tmp_path / "x.safetensors", given)
    found = read_safetensors(tmp_path / "x.safetensors")
    assert found.keys() == given.keys()
    for name, array in given.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(found[name], array)


def test_missing_and_damaged_files_are_one_line(folder):
    weights = (folder / "model.safetensors").read_bytes()
    for data, message in (
        (weights[:-1], "is cut off or damaged|bytes too many|damaged at"),
        (b"", "is empty"),
        (None, r"there is no file or folder .*model\.safetensors"),
    ):
        (folder / "model.safetensors").unlink()
        if data is not None:
            (folder / "model.safetensors").write_bytes(data)
        with pytest.raises(UserError, match=message) as error:
            load_network(folder)
        assert "\n" not in str(error.value)
        (folder / "model.safetensors").write_bytes(weights)
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"JSON of .*config\.json cannot be read"):
        load_network(folder)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"class_names": ["cat"]}, "expected 2 class_names; found 1"),
        ({"class_names": "cat"}, "class_names must be a list of names; found 'cat'"),
        ({"class_names": [1, 2]}, "class_names must be a list of names"),
        ({"alpha_range": [1]}, "alpha_range must be two numbers above 0"),
        ({"alpha_range": [4.0, 1.0]}, "alpha_range must be two numbers above 0"),
        ({"alpha_range": "1-4"}, "alpha_range must be two numbers above 0"),
        ({"fields": {}}, "describes no network"),
        ({"network": "gan"}, "a network of the kind 'gan'; expected one of generator, autoenc"),
        ({"step": "x"}, "step must be a whole number"),
    ],
)
def test_descriptions_are_checked(folder, changes, message):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(UserError, match=message):
        load_network(folder)


def test_a_file_of_a_folder_names_the_folder(folder, tmp_path):
    with pytest.raises(UserError, match=r"is a part of the network in .*hub: give that folder"):
        load_network(folder / "model.safetensors")
    shutil.copy(folder / "model.safetensors", tmp_path / "alone.safetensors")
    with pytest.raises(UserError, match="no network that is known here"):
        load_network(tmp_path / "alone.safetensors")
