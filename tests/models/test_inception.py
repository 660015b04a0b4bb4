"""FID's Inception-v3 and its weights against torch-fidelity's numbers, its parts against NumPy."""

import re
import zlib

import inception_weights
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drifting_jax.errors import UserError
from drifting_jax.evaluation.features.resize import tf_bilinear
from drifting_jax.models import inception
from drifting_jax.models.inception import InceptionV3
from drifting_jax.weights import inception as weights
from drifting_jax.weights.mapping import disassemble
from drifting_jax.weights.networks import load_network
from drifting_jax.weights.shapes import param_shapes

ARRAYS = np.load(inception_weights.FOLDER / "io.npz")


@pytest.fixture(scope="module")
def tensors():
    return inception_weights.draw_tensors()


@pytest.fixture(scope="module")
def outputs(tensors):
    """Features of case a (two images) and case c (one), and outputs of the blocks."""
    model, variables = weights.load(tensors)

    @jax.jit
    def run(variables, pixels):
        blocks = (inception.InceptionA, inception.InceptionB, inception.InceptionC)
        blocks += (inception.InceptionD, inception.InceptionE)
        features, state = model.apply(
            variables,
            pixels,
            capture_intermediates=lambda module, _: isinstance(module, blocks),
            mutable=["intermediates"],
        )
        maps = {name: x["__call__"][0] for name, x in state["intermediates"].items()}
        return features, {name: x.mean((1, 2)) for name, x in maps.items()}

    images = (ARRAYS[f"{case}/image_u8"].transpose(0, 2, 3, 1) for case in "ac")
    pixels = np.concatenate([(tf_bilinear(x) - 128) / 128 for x in images])
    return jax.tree.map(np.asarray, run(variables, pixels))


def _reference(name):
    """A stored array of all three images."""
    return np.concatenate([ARRAYS[f"a/{name}"], ARRAYS[f"c/{name}"]])


def _assert_near(ours, expected, name, tolerance=2e-6):
    """Equal to `tolerance` relative to the largest expected magnitude."""
    assert ours.shape == expected.shape and ours.dtype == np.float32, name
    error = np.abs(ours - expected.astype(np.float64)).max() / np.abs(expected).max()
    assert error < tolerance, (name, error)


def test_the_rule_gives_the_weights_of_the_reference_numbers(tensors):
    for name, entry in inception_weights.KEYS.items():
        if "crc32_le_bytes" in entry:
            assert zlib.crc32(tensors[name].tobytes()) == entry["crc32_le_bytes"], name


@pytest.mark.parametrize("name", ["64", "192", "768", "2048", "logits_unbiased", "logits"])
def test_features_equal_the_reference(outputs, name):
    _assert_near(outputs[0][name], _reference(name), name)


@pytest.mark.parametrize("name", ["2048", "logits_unbiased"])
def test_features_equal_the_reference_in_float64(outputs, name):
    _assert_near(outputs[0][name], _reference(f"{name}_f64"), name)


def test_every_block_equals_the_reference(outputs):
    names = [name.partition("mean_")[2] for name in ARRAYS.files if name.startswith("a/mean_")]
    blocks = [name for name in names if name.startswith("Mixed")]
    assert sorted(outputs[1]) == sorted(blocks) and len(blocks) == 11
    for name in blocks:
        _assert_near(outputs[1][name], _reference(f"mean_{name}"), name)


def test_the_map_of_sfid_is_flattened_with_channels_fastest(outputs):
    expected = _reference("mixed_6d_branch1x1_first7").transpose(0, 2, 3, 1).reshape(3, 2023)
    _assert_near(outputs[0]["spatial"], expected, "spatial", tolerance=1e-5)


def test_all_features_are_there(outputs):
    shapes = {name: x.shape for name, x in outputs[0].items()}
    means = {str(d): (3, d) for d in (64, 192, 768, 2048)}
    assert shapes == means | {"spatial": (3, 2023)} | dict.fromkeys(
        ("logits", "logits_unbiased"), (3, 1008)
    )


@pytest.mark.parametrize(("height", "width"), [(7, 5), (1, 4), (2, 2), (8, 8)])
def test_means_leave_out_what_lies_outside(height, width):
    x = np.random.default_rng(0).normal(size=(2, height, width, 3)).astype(np.float32)
    expected = np.zeros(x.shape)
    for i in range(height):
        for j in range(width):
            window = x[:, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2].astype(np.float64)
            expected[:, i, j] = window.mean((1, 2))
    np.testing.assert_allclose(jax.jit(inception.average_pool)(x), expected, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(7, 5), (8, 9), (3, 4)])
@pytest.mark.parametrize("stride", [1, 2])
def test_maxima_of_windows(height, width, stride):
    x = -np.random.default_rng(0).uniform(size=(2, height, width, 3)).astype(np.float32)
    border = 1 if stride == 1 else 0
    padded = np.pad(x, ((0, 0), (border,) * 2, (border,) * 2, (0, 0)), constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
    expected = windows[:, ::stride, ::stride].max((-2, -1))
    ours = jax.jit(inception.max_pool, static_argnames="stride")(x, stride=stride)
    np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("kernel_size", [(1, 1), (3, 3), (1, 7), (5, 5)])
@pytest.mark.parametrize(("stride", "padding"), [(1, "SAME"), (1, "VALID"), (2, "VALID")])
def test_a_convolution_is_normed_and_rectified(kernel_size, stride, padding):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 9, 11, 4)).astype(np.float32)
    module = inception.ConvNorm(6, kernel_size)
    shapes = jax.eval_shape(lambda key: module.init(key, 4), jax.random.key(0))["params"]
    params = {name: rng.uniform(0.1, 1, s.shape) for name, s in shapes.items()}
    params["kernel"] -= 0.5
    params = {name: array.astype(np.float32) for name, array in params.items()}

    @jax.jit
    def run(params, x):
        return inception.convolve(
            x, module.bind({"params": params}), stride=stride, padding=padding
        )

    p = {name: array.astype(np.float64) for name, array in params.items()}
    kh, kw = kernel_size
    border = ((kh // 2,) * 2, (kw // 2,) * 2) if padding == "SAME" else ((0, 0), (0, 0))
    padded = np.pad(x.astype(np.float64), ((0, 0), *border, (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel_size, (1, 2))
    sums = np.einsum("bhwiyx,yxio->bhwo", windows[:, ::stride, ::stride], p["kernel"])
    normed = (sums - p["mean"]) / np.sqrt(p["variance"] + 1e-3) * p["scale"] + p["bias"]
    np.testing.assert_allclose(run(params, x), np.maximum(normed, 0), atol=1e-5)


def test_weights_come_back_as_they_were(tensors):
    _, variables = weights.load(tensors)
    back = disassemble(variables["params"], weights.table(variables["params"]))
    assert set(back) == {name for name in tensors if not name.endswith("num_batches_tracked")}
    for name, array in back.items():
        np.testing.assert_array_equal(array, tensors[name])


def test_the_published_files_are_recognised(tmp_path):
    """Both hold these names; pytorch-fid's may have the classifier that training needs."""
    path = tmp_path / "pt_inception-2015-12-05-6726825d.pth"
    expected = inception_weights.write_file(path)
    network = load_network(path)
    assert (network.kind, network.model) == ("inception", InceptionV3())
    back = disassemble(network.variables["params"], weights.table(network.variables["params"]))
    assert set(back) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(back[name], array)


@pytest.mark.parametrize(
    "name",
    ["fc.bias", "Mixed_6c.branch7x7_2.bn.running_var"],
)
def test_a_missing_or_misshapen_tensor_is_named(name):
    tensors = inception_weights.empty_tensors()
    with pytest.raises(UserError, match=rf"^a\.pth lacks {re.escape(name)}$"):
        weights.load({k: x for k, x in tensors.items() if k != name}, origin="a.pth")
    with pytest.raises(UserError, match=rf"{re.escape(name)} of the file .*\(5, 2\)"):
        weights.load({**tensors, name: np.zeros((5, 2))})
    with pytest.raises(UserError, match=r"holds Mixed_8a\.bn\.bias, which this network has no"):
        weights.load({**tensors, "Mixed_8a.bn.bias": np.zeros(3)})


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 299, 299, 4), r"\[b, h, w, 3\].*\(1, 299, 299, 4\)"),
        ((299, 299, 3), r"\[b, h, w, 3\]"),
        ((1, 74, 299, 3), r"75x75 or more.*found 74x299"),
    ],
)
def test_what_does_not_fit_is_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(InceptionV3().init, jax.random.key(0), jnp.zeros(shape))


def test_the_smallest_and_oblong_images_have_features():
    for height, width, spatial in ((75, 75, 3 * 3), (75, 139, 3 * 7)):
        found, _ = jax.eval_shape(
            lambda x: InceptionV3().init_with_output(jax.random.key(0), x),
            jnp.zeros((2, height, width, 3)),
        )
        assert found["2048"].shape == (2, 2048) and found["spatial"].shape == (2, 7 * spatial)


def test_products_are_at_the_highest_precision():
    variables = {"params": param_shapes(InceptionV3())}
    pixels = jax.ShapeDtypeStruct((1, 75, 75, 3), jnp.float32)
    text = jax.jit(InceptionV3().apply).lower(variables, pixels).as_text()
    products = [x for x in text.splitlines() if "dot_general" in x or "stablehlo.convolution" in x]
    assert len(products) > 60
    assert all(line.count("HIGHEST") == 2 for line in products)
