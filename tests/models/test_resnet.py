"""ResNet-50 and its weights against torch's numbers, under its published names."""

import json
import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from PIL import Image
from safetensors.numpy import load_file

from drifting_jax.errors import UserError
from drifting_jax.method.features import multiscale_features
from drifting_jax.models.resnet import FrozenBatchNorm, ResNet, imagenet_input
from drifting_jax.weights import resnet as weights
from drifting_jax.weights.mapping import disassemble

FOLDER = Path(__file__).parents[1] / "fixtures" / "torch" / "resnet50"
FULL = json.loads((FOLDER / "keys_full.json").read_text())
ARRAYS = np.load(FOLDER / "io.npz")
MEAN = np.array([0.485, 0.456, 0.406])
STD = np.array([0.229, 0.224, 0.225])
SMALL = ResNet(width=2, blocks=(1, 2, 1, 1))


@pytest.fixture(scope="module")
def tensors():
    return load_file(FOLDER / "resnet50_tiny.safetensors")


@pytest.fixture(scope="module")
def small():
    """Variables of `SMALL` that are not zero, as its file holds them."""
    generator = np.random.default_rng(0)
    zeros = _zeros(SMALL)
    return {k: generator.uniform(0.5, 1.5, x.shape).astype(np.float32) for k, x in zeros.items()}


def _zeros(model):
    """Tensors that take no memory, with the names and shapes of the network's file."""
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    params = jax.tree.map(lambda x: np.broadcast_to(np.float32(0), x.shape), shapes)
    return disassemble(params, weights.table(model))


def _array(name):
    """A stored array, [b, c, h, w] there and [b, h, w, c] here."""
    array = ARRAYS[name]
    return array.transpose(0, 2, 3, 1) if array.ndim == 4 else array


def _images(case):
    """The stored input, as images in [-1, 1]."""
    return ((_array(f"{case}/input") * STD + MEAN) * 2 - 1).astype(np.float32)


def _assert_near(ours, expected, name, tolerance=5e-6):
    """Equal to `tolerance` relative to the largest expected magnitude."""
    assert ours.shape == expected.shape, name
    error = np.abs(np.asarray(ours, np.float64) - expected).max() / np.abs(expected).max()
    assert error < tolerance, (name, error)


@pytest.mark.parametrize("case", ["case0_64x64", "case1_75x97"])
def test_every_number_equals_the_reference(tensors, case):
    model, variables = weights.load(tensors, classifier=True)
    assert model == ResNet(width=8, num_classes=10)

    @jax.jit
    def run(variables, pixels):
        logits, state = model.apply(
            variables, pixels, capture_intermediates=True, mutable=["intermediates"]
        )
        pooled = model.clone(num_classes=0).apply(variables, pixels)
        return logits, pooled, state["intermediates"]["trunk"]["__call__"][0]

    logits, pooled, maps = run(variables, _array(f"{case}/input"))
    _assert_near(logits, ARRAYS[f"{case}/logits_f64"], "logits")
    _assert_near(pooled, ARRAYS[f"{case}/pooled_f64"], "pooled")
    _assert_near(maps["stem"], _array(f"{case}/stem_maxpool"), "stem")
    for stage, depth in enumerate(model.blocks, start=1):
        for block in range(depth):
            ours = maps[f"stage{stage}_block{block + 1}"]
            _assert_near(ours, _array(f"{case}/layer{stage}.{block}"), f"{stage}.{block}")


def test_feature_maps_equal_the_reference(tensors):
    model, variables = weights.load(tensors)
    assert model == ResNet(width=8) and "classifier" not in variables["params"]
    feature_maps = partial(model.apply, method=ResNet.feature_maps)
    maps = jax.jit(feature_maps)(variables, _images("case1_75x97"))
    stages = {
        "stage1": "layer1.2",
        "stage2": "layer2.3",
        "stage3": "layer3.5",
        "stage4": "layer4.2",
    }
    # Every second block but the last of a stage.
    blocks = {"stage1_block2": "layer1.1", "stage2_block2": "layer2.1", "stage3_block2": "layer3.1"}
    more = {"stage3_block4": "layer3.3", "stage4_block2": "layer4.1", "stem": "stem_maxpool"}
    names = stages | blocks | more
    assert set(maps) == set(names)
    for ours, theirs in names.items():
        _assert_near(maps[ours], _array(f"case1_75x97/{theirs}"), ours)
    features = jax.eval_shape(multiscale_features, maps)
    assert features["stage4/mean"].shape == (1, 1, 256)


def test_bfloat16_stays_near_the_reference(tensors):
    model, variables = weights.load(tensors, dtype=jnp.bfloat16)
    model = model.clone(blocks=(3,), every_k_block=0)
    feature_maps = partial(model.apply, method=ResNet.feature_maps)
    maps = jax.jit(feature_maps)(variables, _images("case0_64x64"))
    assert set(maps) == {"stem", "stage1"} and maps["stage1"].dtype == jnp.bfloat16
    _assert_near(maps["stage1"], _array("case0_64x64/layer1.2"), "stage1", tolerance=3e-2)


@pytest.mark.parametrize(("k", "blocks"), [(0, []), (1, [1, 2]), (2, [2]), (5, [])])
def test_blocks_between_the_stages_are_chosen(k, blocks):
    model = ResNet(width=2, blocks=(3,), every_k_block=k)
    maps = jax.eval_shape(
        lambda key, x: model.init_with_output(key, x, method=ResNet.feature_maps)[0],
        jax.random.key(0),
        jnp.zeros((2, 20, 30, 3)),
    )
    assert set(maps) == {"stem", "stage1"} | {f"stage1_block{i}" for i in blocks}
    assert maps["stem"].shape == (2, 5, 8, 2) and maps["stage1"].shape == (2, 5, 8, 8)


def test_weights_come_back_as_they_were(tensors):
    model, variables = weights.load(tensors, classifier=True)
    back = disassemble(variables["params"], weights.table(model))
    kept = {name for name in tensors if not name.endswith("num_batches_tracked")}
    assert set(back) == kept
    for name in kept:
        np.testing.assert_array_equal(back[name], tensors[name])


def test_the_published_size_loads_by_name():
    zeros = {name: np.broadcast_to(np.float32(0), shape) for name, shape in FULL["keys"].items()}
    model, variables = weights.load(zeros, classifier=True)
    assert model == ResNet(num_classes=1000)
    arrays = flatten_dict(variables["params"])
    learned = [x.size for path, x in arrays.items() if path[-1] not in ("mean", "variance")]
    assert sum(learned) == FULL["n_params"]


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "encoder.", "convnet.", "a/b.c."])
def test_a_prefix_and_a_projection_are_left_alone(small, prefix):
    others = [
        "fc.0.weight",
        "fc.2.bias",
        "bn1.num_batches_tracked",
        "layer2.1.bn3.num_batches_tracked",
    ]
    tensors = {f"{prefix}{name}": x for name, x in small.items()}
    tensors |= {f"{prefix}{name}": np.zeros(3) for name in others}
    if prefix:
        tensors |= {"projector.0.weight": np.zeros(2), "queue": np.zeros(2)}
    model, variables = weights.load(tensors)
    assert model == SMALL
    back = disassemble(variables["params"], weights.table(model))
    assert all(np.array_equal(back[name], x) for name, x in small.items())


@pytest.mark.parametrize("outer", ["", "state_dict/"])
def test_of_moco_the_trained_encoder_is_taken(small, outer):
    module = f"{outer}module."
    tensors = {f"{module}encoder_q.{name}": x for name, x in small.items()}
    tensors |= {f"{module}encoder_k.{name}": x + 1 for name, x in small.items()}
    for name in ("queue", "queue_ptr", "encoder_q.fc.0.weight", "encoder_q.fc.2.bias"):
        tensors[module + name] = np.zeros(3)
    _, variables = weights.load(tensors)
    stem = variables["params"]["trunk"]["stem"]["norm"]["mean"]
    np.testing.assert_array_equal(stem, small["bn1.running_mean"])
    _, variables = weights.load(tensors, prefix=f"{module}encoder_k.")
    stem = variables["params"]["trunk"]["stem"]["norm"]["mean"]
    np.testing.assert_array_equal(stem, small["bn1.running_mean"] + 1)


def simclr_v2(name):
    """The name in PyTorch's files of SimCLRv2 of a tensor that torchvision calls so."""
    found = re.fullmatch(r"layer(\d)\.(\d+)\.(conv|bn|downsample\.)(\d)\.(\w+)", name)
    if not found:
        return name.replace("conv1.", "net.0.0.").replace("bn1.", "net.0.1.0.")
    stage, block, part, number, last = found.groups()
    start = f"net.{stage}.blocks.{block}"
    if part == "downsample.":
        return f"{start}.projection.{('shortcut', 'bn.0')[int(number)]}.{last}"
    place = 2 * (int(number) - 1)
    return f"{start}.net.{place}.{last}" if part == "conv" else f"{start}.net.{place + 1}.0.{last}"


@pytest.mark.parametrize("prefix", ["resnet/", "resnet/module.", ""])
def test_names_of_simclr_v2(small, prefix):
    names = {name: simclr_v2(name) for name in small}
    assert names["layer4.0.conv3.weight"] == "net.4.blocks.0.net.4.weight"
    assert len(set(names.values())) == len(names) and not set(names.values()) & set(names)
    tensors = {f"{prefix}{names[name]}": x for name, x in small.items()}
    tensors[f"{prefix}fc.weight"] = np.zeros((5, 64))
    if prefix:
        tensors["head/layers.0.weight"] = np.zeros((3, 3))
    model, variables = weights.load(tensors)
    assert model == SMALL
    jax.tree.map(np.testing.assert_array_equal, variables, weights.load(small)[1])
    del tensors[f"{prefix}net.2.blocks.1.net.3.0.running_var"]
    with pytest.raises(UserError, match=r"lacks layer2\.1\.bn2\.running_var$"):
        weights.load(tensors)


@pytest.mark.parametrize(
    "name",
    ["conv1.weight", "bn1.running_var", "layer2.1.conv3.weight", "layer4.0.downsample.1.bias"],
)
@pytest.mark.parametrize("prefix", ["", "module.encoder_q."])
def test_a_missing_or_misshapen_tensor_is_named(small, name, prefix):
    tensors = {f"{prefix}{key}": x for key, x in small.items()}
    name = f"{prefix}{name}"
    with pytest.raises(UserError, match=rf"^a\.pth lacks {re.escape(name)}$"):
        weights.load({k: x for k, x in tensors.items() if k != name}, origin="a.pth")
    with pytest.raises(UserError, match=rf"{re.escape(name)} of the file .*\(5, 2\)"):
        weights.load({**tensors, name: np.zeros((5, 2))})


def test_other_files_are_refused(small):
    with pytest.raises(UserError, match=r"lacks layer3\.0\.bn1\.bias, .* and \d+ more"):
        weights.load({k: x for k, x in small.items() if not k.startswith("layer3.")})
    with pytest.raises(UserError, match=r"holds layer1\.0\.se\.weight, which this network has no"):
        weights.load({**small, "layer1.0.se.weight": np.zeros(3)})
    with pytest.raises(UserError, match=r"lacks fc\.weight"):
        weights.load({**small, "fc.0.weight": np.zeros((3, 3))}, classifier=True)
    with pytest.raises(UserError, match=r"holds no ResNet"):
        weights.load({"blocks.0.norm1.weight": np.zeros(3)})
    twice = {f"{prefix}.{k}": x for k, x in small.items() for prefix in ("student", "teacher")}
    with pytest.raises(UserError, match=r"2 networks, with the prefixes 'student\.', 'teacher\.'"):
        weights.load(twice)
    assert weights.load(twice, prefix="teacher.")[0] == SMALL


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        (SMALL, (1, 8, 8, 4), r"\[b, h, w, 3\].*\(1, 8, 8, 4\)"),
        (SMALL, (8, 8, 3), r"\[b, h, w, 3\].*\(8, 8, 3\)"),
        (ResNet(blocks=(1, 0)), (1, 8, 8, 3), r"blocks .*\(1, 0\)"),
        (ResNet(blocks=()), (1, 8, 8, 3), r"blocks .*\(\)"),
    ],
)
@pytest.mark.parametrize("method", [ResNet.__call__, ResNet.feature_maps])
def test_what_does_not_fit_is_refused(model, shape, message, method):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(
            lambda key, x: model.init(key, x, method=method), jax.random.key(0), jnp.zeros(shape)
        )


@pytest.mark.parametrize("size", [12, 40])
def test_images_are_resized_as_pillow_does(size):
    images = np.random.default_rng(1).uniform(-1, 1, (2, 25, 31, 3)).astype(np.float32)
    ours = jax.jit(imagenet_input, static_argnums=(1, 2))(images, size, "bicubic")
    for image, result in zip(images, ours, strict=True):
        for c in range(3):
            resized = Image.fromarray(image[..., c]).resize((size, size), Image.Resampling.BICUBIC)
            expected = ((np.asarray(resized) + 1) / 2 - MEAN[c]) / STD[c]
            np.testing.assert_allclose(result[..., c], expected, atol=2e-5)


def test_the_field_for_resizing_is_used(small):
    _, variables = weights.load(small)
    images = np.random.default_rng(2).uniform(-1, 1, (1, 48, 40, 3)).astype(np.float32)

    @jax.jit
    def maps(images, resized):
        model = SMALL.clone(image_size=24, resize="bilinear")
        ours = model.apply(variables, images, method=ResNet.feature_maps)
        return ours["stem"], SMALL.apply(variables, resized, method=ResNet.feature_maps)["stem"]

    resized = jax.image.resize(images, (1, 24, 24, 3), "bilinear")
    ours, expected = maps(images, resized)
    assert ours.shape == (1, 6, 6, 2)
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_the_norm_takes_out_stored_statistics():
    x = np.random.default_rng(3).normal(5, 2, (2, 3, 4, 2)).astype(np.float32)
    scale, bias, mean, variance = np.array([[2, -1], [0.5, 3], [5, 4], [1e-4, 3]], np.float32)
    params = {"scale": scale, "bias": bias, "mean": mean, "variance": variance}
    ours = FrozenBatchNorm(jnp.float32).apply({"params": params}, x)
    expected = (x.astype(np.float64) - mean) / np.sqrt(variance.astype(np.float64) + 1e-5)
    np.testing.assert_allclose(ours, expected * scale + bias, rtol=1e-5)


def test_float32_products_are_at_the_highest_precision(small):
    model, variables = weights.load(
        {**small, "fc.weight": np.ones((3, 64)), "fc.bias": np.ones(3)}, classifier=True
    )

    def gradient(images):
        return jax.grad(lambda x: model.apply(variables, x).sum())(images)

    text = jax.jit(gradient).lower(jnp.zeros((1, 64, 64, 3))).as_text()
    products = [x for x in text.splitlines() if "dot_general" in x or "stablehlo.convolution" in x]
    assert len(products) > 40
    assert all(line.count("HIGHEST") == 2 for line in products)


def test_gradients_reach_the_image(small):
    _, variables = weights.load(small)

    @jax.jit
    def gradient(images):
        def total(images):
            maps = SMALL.apply(variables, images, method=ResNet.feature_maps)
            return sum((x / jnp.abs(x).max()).sum() for x in maps.values())

        return jax.grad(total)(images)

    images = np.random.default_rng(4).uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)
    found = gradient(images)
    assert np.isfinite(found).all() and (np.abs(found).max((1, 2, 3)) > 0).all()
