"""Extractors: from uint8 images to the features of a metric, and where weights are found."""

import hashlib
from pathlib import Path

import inception_weights
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from drifting_jax.errors import UserError
from drifting_jax.evaluation.features.extractors import (
    dinov2_extractor,
    inception_extractor,
    load_extractor,
)
from drifting_jax.weights import inception as inception_file
from drifting_jax.weights.networks import Network, load_network

TORCH = Path(__file__).parents[1] / "fixtures" / "torch"
STORED = np.load(inception_weights.FOLDER / "io.npz")
PREPROCESS = np.load(TORCH / "preprocess" / "io.npz")
PUBLISHED = "weights-inception-2015-12-05-6726825d.pth"


@pytest.fixture(scope="module")
def dinov2():
    return load_network(TORCH / "dinov2")


@pytest.fixture(scope="module")
def empty_inception():
    model, variables = inception_file.load(inception_weights.empty_tensors())
    return Network("inception", model, variables)


def _images(height, width, channels=3, batch=2):
    shape = (batch, height, width, channels)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_inception_from_a_file_to_features(tmp_path):
    """What torch-fidelity gives for the same uint8 image and the same file's tensors."""
    save_file(inception_weights.draw_tensors(), tmp_path / "weights.safetensors")
    extractor = load_extractor("inception", str(tmp_path / "weights.safetensors"))
    assert (extractor.name, extractor.num_features) == ("inception", 2048)
    images = STORED["a/image_u8"].transpose(0, 2, 3, 1)[:1]
    found = jax.jit(extractor.apply)(extractor.variables, images)
    spatial = STORED["a/mixed_6d_branch1x1_first7"][:1].transpose(0, 2, 3, 1).reshape(1, -1)
    expected = {
        "features": STORED["a/2048"][:1],
        "logits": STORED["a/logits_unbiased"][:1],
        "spatial": spatial,
    }
    assert set(found) == set(expected)
    for name, array in expected.items():
        error = np.abs(found[name] - array).max() / np.abs(array).max()
        assert found[name].dtype == np.float32 and error < 1e-5, (name, error)


def test_dinov2_sees_what_pillow_resizes(dinov2):
    """The published pixels, and positions with the offset of torch.hub's code."""
    extractor = dinov2_extractor(dinov2)
    assert (extractor.name, extractor.num_features) == ("dinov2", 48)
    resized = np.stack([PREPROCESS["up/pil_bicubic_u8_224"]])
    mean, std = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
    pixels = ((resized / 255 - mean) / std).astype(np.float32)
    every4th = pixels[0].transpose(2, 0, 1)[:, ::4, ::4]
    stored = PREPROCESS["up/normalized_from_pil_u8_chw_every4th"]
    np.testing.assert_allclose(every4th, stored, atol=1e-6)
    found = jax.jit(extractor.apply)(extractor.variables, PREPROCESS["up/image_u8_hwc"][None])
    assert set(found) == {"features"}
    hub, plain = (
        np.asarray(jax.jit(dinov2.model.clone(position_offset=offset).apply)(
            dinov2.variables, pixels
        )[0])
        for offset in (0.1, 0.0)
    )  # fmt: skip
    np.testing.assert_allclose(found["features"], hub, atol=2e-5 * np.abs(hub).max())
    assert np.abs(found["features"] - plain).max() > 1e-3 * np.abs(hub).max()


def test_the_compute_dtype_of_the_network_makes_no_difference(dinov2):
    half = Network("dinov2", dinov2.model.clone(dtype=jnp.bfloat16), dinov2.variables)
    first, second = (
        jax.jit(extractor.apply)(extractor.variables, _images(32, 32))["features"]
        for extractor in (dinov2_extractor(dinov2), dinov2_extractor(half))
    )
    np.testing.assert_array_equal(first, second)


def test_grey_images_are_repeated(dinov2):
    extractor = dinov2_extractor(dinov2)
    grey = _images(28, 20, channels=1)
    apply = jax.jit(extractor.apply)
    ours = apply(extractor.variables, grey)["features"]
    expected = apply(extractor.variables, np.repeat(grey, 3, axis=-1))["features"]
    np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((2, 32, 32, 3), "float32"), ((2, 32, 32, 2), "uint8"), ((32, 32, 3), "uint8")],
)
def test_other_images_are_refused(dinov2, empty_inception, shape, dtype):
    for extractor in (dinov2_extractor(dinov2), inception_extractor(empty_inception)):
        with pytest.raises(ValueError, match=r"expected uint8 images .* found"):
            jax.eval_shape(extractor.apply, extractor.variables, jnp.zeros(shape, dtype))


def test_shapes_of_inception_do_not_depend_on_the_images(empty_inception):
    extractor = inception_extractor(empty_inception)
    for images in (_images(28, 28, channels=1), _images(256, 300)):
        found = jax.eval_shape(extractor.apply, extractor.variables, images)
        shapes = {name: x.shape for name, x in found.items()}
        assert shapes == {"features": (2, 2048), "logits": (2, 1008), "spatial": (2, 2023)}


def test_the_digest_is_of_all_parameters(dinov2):
    digest = dinov2_extractor(dinov2).digest
    expected = hashlib.sha256()
    params = flatten_dict(dinov2.variables["params"], sep="/")
    for name in sorted(params):
        expected.update(f"{name} float32 {params[name].shape}\n".encode())
        expected.update(params[name].astype("<f4").tobytes())
    assert digest == expected.hexdigest()
    moved = jax.tree.map(np.array, dinov2.variables)
    moved["params"]["norm"]["bias"][3] += 1e-6
    assert dinov2_extractor(Network("dinov2", dinov2.model, moved)).digest != digest


def test_networks_of_another_kind_are_refused(dinov2, empty_inception):
    with pytest.raises(ValueError, match="kind 'inception', found 'dinov2'"):
        inception_extractor(dinov2)
    with pytest.raises(ValueError, match="kind 'dinov2', found 'inception'"):
        dinov2_extractor(empty_inception)
    with pytest.raises(UserError, match=r"model\.safetensors lacks Conv2d_1a"):
        load_extractor("inception", str(TORCH / "dinov2"))
    with pytest.raises(UserError, match="extractors are inception, dinov2; found 'vgg'"):
        load_extractor("vgg")


@pytest.mark.parametrize("name", ["inception", "dinov2"])
def test_absent_weights_say_where_to_get_them(tmp_path, monkeypatch, name):
    monkeypatch.setenv("DRIFTING_JAX_WEIGHTS", str(tmp_path / "mine"))
    with pytest.raises(UserError) as error:
        load_extractor(name, flag="--here")
    text = str(error.value)
    for part in (str(tmp_path / "mine"), "https://", ".pth", "--here"):
        assert part in text
    assert "\n" not in text
    monkeypatch.delenv("DRIFTING_JAX_WEIGHTS")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"/\.cache/drifting_jax/weights: download"):
        load_extractor(name)
    with pytest.raises(UserError, match=r"no file or folder nowhere\.pth"):
        load_extractor(name, "nowhere.pth")


@pytest.mark.parametrize("file", [PUBLISHED, "pt_inception-2015-12-05-6726825d.pth"])
def test_published_files_are_found_in_the_folder(tmp_path, monkeypatch, file):
    monkeypatch.setenv("DRIFTING_JAX_WEIGHTS", str(tmp_path))
    inception_weights.write_file(tmp_path / file)
    extractor = load_extractor("inception")
    assert extractor.resize == "TF1 bilinear to 299x299, not rounded"
    assert (extractor.variables["params"]["fc_bias"] >= 1).all()
    assert "its SHA-256 begins with" in extractor.warning and "not 6726825d" in extractor.warning


def test_files_of_other_names_give_no_warning(tmp_path):
    inception_weights.write_file(tmp_path / "mine-20240101.pth")
    assert load_extractor("inception", str(tmp_path / "mine-20240101.pth")).warning == ""
