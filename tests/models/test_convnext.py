"""ConvNeXt-V2 and its weights against the reference numbers, by name and by properties."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import read_release

from drifting_jax.errors import UserError
from drifting_jax.method.features import multiscale_features
from drifting_jax.models import convnext
from drifting_jax.models.convnext import ConvNeXtV2
from drifting_jax.models.pixels import imagenet_input
from drifting_jax.weights import convnext as weights
from drifting_jax.weights.mapping import disassemble

ARRAYS = read_release.load("E_convnextv2.npz")
MEAN = np.array([0.485, 0.456, 0.406], np.float64)
STD = np.array([0.229, 0.224, 0.225], np.float64)
BASE = {"depths": [3, 3, 27, 3], "hidden_sizes": [128, 256, 512, 1024]}
TINY = {"depths": [3, 3, 9, 3], "hidden_sizes": [96, 192, 384, 768]}
SMALL = {"depths": [1, 2], "hidden_sizes": [6, 10], "image_size": 24}

# The reference's names of features -> ours. It has no patches and no locations of the first stage;
# it has the standard deviation of the last stage twice.
NAMES = {
    **{
        f"convenxt_stage_{i}{theirs}": f"stage{i + 1}{ours}"
        for i in range(4)
        for theirs, ours in (("", ""), ("_mean", "/mean"), ("_std", "/std"))
        if (i, theirs) != (0, "")
    },
    "global_mean": "pooled",
    "global_std": "stage4/std",
}


def _group(prefix):
    return {name[len(prefix) :]: ARRAYS[name] for name in ARRAYS.files if name.startswith(prefix)}


def _config():
    sizes = read_release.meta(ARRAYS, "config")
    return {"model_type": "convnextv2", "depths": sizes["depths"], "hidden_sizes": sizes["dims"]}


def _images(case):
    """Images in [-1, 1]; those of "up" and "down" are stored as the network sees them."""
    x = ARRAYS[f"{case}/in/x_int8"].astype(np.float64) * ARRAYS[f"{case}/in/x_scale"]
    return (x if case == "activation_fn" else (x * STD + MEAN) * 2 - 1).astype(np.float32)


def _features(model, variables, images):
    def features(variables, images):
        maps = model.apply(variables, images, method=ConvNeXtV2.feature_maps)
        return multiscale_features(maps, patch_sizes=())

    return jax.jit(features)(variables, images)


def _error(ours, expected):
    """Largest difference relative to the largest expected magnitude."""
    assert ours.shape == expected.shape
    return np.abs(np.asarray(ours, np.float64) - expected).max() / np.abs(expected).max()


def _zeros(config, *, prefix="convnextv2."):
    """Zero tensors that take no memory, with the names and shapes of a published file."""
    model = weights.from_config(config)
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    params = jax.tree.map(lambda x: np.broadcast_to(np.float32(0), x.shape), shapes)
    tensors = disassemble(params, weights.table(model))
    return {name.replace("convnextv2.", prefix, 1): array for name, array in tensors.items()}


@pytest.fixture(scope="module")
def small():
    """A small network with parameters that are not zero, as (model, variables)."""
    generator = np.random.default_rng(0)
    tensors = {
        name: generator.normal(0, 0.3, array.shape).astype(np.float32)
        for name, array in _zeros(SMALL).items()
    }
    return weights.load(tensors, SMALL)


@pytest.mark.parametrize("case", ["up", "down"])
def test_the_resized_input_equals_the_reference(case):
    resized = imagenet_input(_images(case), 224, "linear")[:, :4]
    assert _error(resized, ARRAYS[f"{case}/resized_224_rows0_4"]) < 2e-6


@pytest.mark.parametrize("case", ["up", "down", "activation_fn"])
def test_features_equal_the_reference(case):
    model, variables = weights.load(_group("hf/"), _config())
    features = _features(model, variables, _images(case))
    expected = {name: array for name, array in _group(f"{case}/act/").items() if name in NAMES}
    assert set(expected) == set(NAMES)
    for name, array in expected.items():
        assert _error(features[NAMES[name]], array) < 1e-5, name
    # Of ours the reference lacks only the first stage's locations and a mean of one location.
    assert set(features) - set(NAMES.values()) == {"stage1", "pooled/mean"}


def test_bfloat16_stays_near_the_reference():
    model, variables = weights.load(_group("hf/"), _config(), dtype=jnp.bfloat16)
    features = _features(model, variables, _images("down"))
    assert features["stage2"].dtype == jnp.bfloat16
    assert features["stage2/std"].dtype == features["pooled"].dtype == jnp.float32
    for name, expected in _group("down/act_bf16/").items():
        assert _error(features[NAMES[name]], expected) < 3e-2, name


@pytest.mark.parametrize("case", ["up", "down"])
def test_the_plain_forward_equals_the_reference(case):
    model, variables = weights.load(_group("hf/"), _config())
    pooled = jax.jit(model.apply)(variables, _images(case))
    assert _error(pooled, ARRAYS[f"{case}/forward_features"]) < 1e-5


def test_weights_come_back_as_they_were():
    tensors = _group("hf/")
    model, variables = weights.load(tensors, _config())
    assert variables["params"]["trunk"]["stage2_block1"]["depthwise"]["kernel"].shape[2] == 1
    back = disassemble(variables["params"], weights.table(model))
    kept = {name for name in tensors if not name.startswith("classifier.")}
    assert set(back) == kept
    for name in kept:
        np.testing.assert_array_equal(back[name], tensors[name])


@pytest.mark.parametrize(
    ("config", "millions"),
    [(BASE, 87.7), (TINY, 27.9)],
    ids=["base", "tiny"],
)
def test_published_sizes_load_by_name(config, millions):
    tensors = _zeros(config)
    head = np.broadcast_to(np.float32(0), (21841, config["hidden_sizes"][-1]))
    tensors |= {"classifier.weight": head, "classifier.bias": head[:, 0]}
    model, variables = weights.load(tensors, config)
    assert model.depths == tuple(config["depths"]) and model.image_size == 224
    count = sum(leaf.size for leaf in jax.tree.leaves(variables))
    assert count / 1e6 == pytest.approx(millions, abs=0.05)


def test_the_default_network_is_base_and_the_default_config_tiny():
    assert ConvNeXtV2() == weights.from_config(BASE)
    assert weights.from_config({}) == weights.from_config(TINY)


def test_names_without_the_prefix_are_read():
    tensors = _zeros(SMALL, prefix="")
    assert "embeddings.layernorm.weight" in tensors and "layernorm.bias" in tensors
    _, variables = weights.load(tensors, SMALL)
    assert len(jax.tree.leaves(variables)) == len(tensors)


def test_wrong_files_are_named():
    name = "convnextv2.encoder.stages.1.layers.1.grn.weight"
    tensors = _zeros(SMALL)
    with pytest.raises(UserError, match=rf"^the file lacks {re.escape(name)}$"):
        weights.load({k: v for k, v in tensors.items() if k != name}, SMALL)
    with pytest.raises(UserError, match=r"^a\.bin holds layer_scale, which"):
        weights.load({**tensors, "layer_scale": np.zeros(3)}, SMALL, origin="a.bin")
    with pytest.raises(UserError, match=re.escape(name) + r".*\(40,\).*\(1, 1, 1, 40\)"):
        weights.load({**tensors, name: np.zeros(40)}, SMALL)


@pytest.mark.parametrize(
    ("field", "value"), [("model_type", "convnext"), ("hidden_act", "relu"), ("num_channels", 4)]
)
def test_another_architecture_is_refused(field, value):
    with pytest.raises(UserError, match=rf"{field} .* found {re.escape(repr(value))}"):
        weights.from_config({**SMALL, field: value})


def test_a_published_config_is_understood():
    text = """{"architectures": ["ConvNextV2ForImageClassification"], "depths": [2, 2, 6, 2],
      "drop_path_rate": 0.0, "hidden_act": "gelu", "hidden_sizes": [40, 80, 160, 320],
      "image_size": 384, "initializer_range": 0.02, "layer_norm_eps": 1e-12,
      "model_type": "convnextv2", "num_channels": 3, "num_stages": 4, "patch_size": 8}"""
    model = weights.from_config(json.loads(text), dtype=jnp.bfloat16)
    expected = ConvNeXtV2((2, 2, 6, 2), (40, 80, 160, 320), 8, 384, jnp.bfloat16)
    assert model == expected


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        (ConvNeXtV2((1,), (4,)), (1, 8, 8, 4), r"\[b, h, w, 3\].*\(1, 8, 8, 4\)"),
        (ConvNeXtV2((1,), (4,)), (8, 8, 3), r"\[b, h, w, 3\].*\(8, 8, 3\)"),
        (ConvNeXtV2((1, 1), (4,)), (1, 8, 8, 3), r"\(1, 1\) and \(4,\)"),
        (ConvNeXtV2((1, 1, 1), (4, 4, 4), image_size=15), (1, 8, 8, 3), "at least 16.*found 15"),
    ],
)
def test_what_does_not_fit_is_refused(model, shape, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape))


def test_every_location_is_normalised():
    x = np.random.default_rng(1).normal(3, 2, (2, 3, 4, 8)).astype(np.float32)
    ours = convnext.normalize_locations(x)
    centred = x.astype(np.float64) - x.mean(-1, keepdims=True, dtype=np.float64)
    expected = centred / (centred.std(-1, keepdims=True) + 1e-3)
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    np.testing.assert_array_equal(convnext.normalize_locations(jnp.full((1, 2, 2, 5), 7.0)), 0)


def test_an_image_does_not_depend_on_its_batch(small):
    model, variables = small
    images = np.random.default_rng(2).uniform(-1, 1, (3, 17, 17, 3)).astype(np.float32)
    maps = jax.jit(lambda x: model.apply(variables, x, method=ConvNeXtV2.feature_maps))
    together, alone = maps(images), maps(images[1:2])
    shapes = {name: x.shape[1:] for name, x in together.items()}
    assert shapes == {"stage1": (6, 6, 6), "stage2": (3, 3, 10), "pooled": (1, 1, 10)}
    for name, x in together.items():
        np.testing.assert_allclose(x[1:2], alone[name], rtol=1e-4, atol=1e-5)


def test_gradients_reach_the_image_and_stay_finite_where_a_channel_is_dead(small):
    model, variables = small

    @jax.jit
    def gradient(variables, images):
        def total(images):
            maps = model.apply(variables, images, method=ConvNeXtV2.feature_maps)
            return sum((x**3).sum() for x in maps.values())

        return jax.grad(total)(images)

    images = np.random.default_rng(3).uniform(-1, 1, (2, 24, 24, 3)).astype(np.float32)
    assert np.abs(gradient(variables, images)).max() > 0
    dead = jax.tree.map(jnp.zeros_like, variables)
    assert np.isfinite(gradient(dead, images)).all()
