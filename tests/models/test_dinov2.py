"""DINOv2 and its weights against transformers' numbers, by its names and those of torch.hub."""

import json
import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from drifting_jax.errors import UserError
from drifting_jax.method.features import multiscale_features
from drifting_jax.models.dinov2 import DINOv2, resize_positions
from drifting_jax.weights import dinov2 as weights
from drifting_jax.weights.mapping import disassemble

FOLDER = Path(__file__).parents[1] / "fixtures" / "torch"
MEAN = np.array([0.485, 0.456, 0.406])
STD = np.array([0.229, 0.224, 0.225])
CASES = [
    ("dinov2", "case0_56x56"),
    ("dinov2", "case1_70x70"),
    ("dinov2", "case2_42x84"),
    ("dinov2_swiglu", "case0_56x56"),
    ("dinov2_swiglu", "case1_28x28"),
]
RESIZED = [case for case in CASES if case[1] != "case0_56x56"]
SMALL = DINOv2(width=64, depth=2, num_heads=1, patch_size=4, position_grid=3)


def _folder(name):
    """Config, tensors and reference arrays of a folder."""
    folder = FOLDER / name
    config = json.loads((folder / "config.json").read_text())
    return config, load_file(folder / "model.safetensors"), np.load(folder / "io.npz")


FOLDERS = {name: _folder(name) for name in ("dinov2", "dinov2_swiglu")}


def _load(folder, **kwargs):
    config, tensors, _ = FOLDERS[folder]
    return weights.load(tensors, config, **kwargs)


def _pixels(folder, case):
    return FOLDERS[folder][2][f"{case}/pixel_values"].transpose(0, 2, 3, 1)


def _tokens(maps):
    b, _, _, d = maps.shape
    return maps.reshape(b, -1, d)


def _assert_near(ours, expected, name, tolerance=5e-6):
    """Equal to `tolerance` relative to the largest expected magnitude."""
    assert ours.shape == expected.shape, name
    error = np.abs(np.asarray(ours, np.float64) - expected).max() / np.abs(expected).max()
    assert error < tolerance, (name, error)


def _zeros(model):
    """Tensors that take no memory, with the names and shapes of the network's file."""
    side = model.patch_size
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    params = jax.tree.map(lambda x: np.broadcast_to(np.float32(0), x.shape), shapes)
    return disassemble(params, weights.table(model))


def _hub(tensors):
    """The same tensors as in torch.hub: other names, and queries, keys and values in one tensor."""
    names = [
        (r"embeddings\.(cls_token|mask_token)", r"\1"),
        (r"embeddings\.position_embeddings", "pos_embed"),
        (r"embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
        (r"layernorm", "norm"),
        (r"encoder\.layer", "blocks"),
        (r"attention\.output\.dense", "attn.proj"),
        (r"layer_scale(\d)\.lambda1", r"ls\1.gamma"),
        (r"mlp\.weights_in", "mlp.w12"),
        (r"mlp\.weights_out", "mlp.w3"),
    ]
    found = {}
    for name, array in tensors.items():
        if ".attention.attention." in name:
            if ".query." in name:
                parts = [tensors[name.replace("query", x)] for x in ("query", "key", "value")]
                name = name.replace("attention.attention.query", "attn.qkv")
                found[name.replace("encoder.layer", "blocks")] = np.concatenate(parts)
            continue
        for pattern, replacement in names:
            name = re.sub(pattern, replacement, name)
        found[name] = array
    return found


@pytest.fixture(scope="module")
def small():
    """Tensors for `SMALL` that are not zero, by transformers' names."""
    generator = np.random.default_rng(0)
    zeros = _zeros(SMALL)
    return {k: generator.normal(0, 0.3, x.shape).astype(np.float32) for k, x in zeros.items()}


@pytest.mark.parametrize(("folder", "case"), CASES)
def test_every_number_equals_the_reference(folder, case):
    model, variables = _load(folder)
    arrays = FOLDERS[folder][2]

    @jax.jit
    def run(variables, pixels):
        output, state = model.apply(
            variables, pixels, capture_intermediates=True, mutable=["intermediates"]
        )
        return output, state["intermediates"]

    (class_token, patches), state = run(variables, _pixels(folder, case))
    _assert_near(class_token, arrays[f"{case}/cls_f64"], "cls")
    _assert_near(_tokens(patches), arrays[f"{case}/patch_tokens_f64"], "patch_tokens")
    for i in range(model.depth + 1):
        hidden = state["embeddings" if i == 0 else f"block{i}"]["__call__"][0]
        _assert_near(hidden, arrays[f"{case}/hidden_{i}"], f"hidden_{i}")


@pytest.mark.parametrize(("folder", "case"), RESIZED[1:])
def test_facebookresearchs_numbers_equal_the_reference(folder, case):
    model, variables = _load(folder, position_offset=0.1)
    arrays = FOLDERS[folder][2]
    class_token, patches = jax.jit(model.apply)(variables, _pixels(folder, case))
    _assert_near(class_token, arrays[f"{case}/fb_offset01_cls"], "cls")
    _assert_near(_tokens(patches), arrays[f"{case}/fb_offset01_patch_tokens"], "patch_tokens")


@pytest.mark.parametrize(("folder", "case"), CASES)
def test_resized_positions_equal_the_reference(folder, case):
    _, tensors, arrays = FOLDERS[folder]
    rows, columns = (side // 14 for side in _pixels(folder, case).shape[1:3])
    names = {0.0: "pos_embed_used", 0.1: "fb_offset01_pos_embed"}
    if (folder, case) not in RESIZED:
        names[0.1] = names[0.0]
    for offset, name in names.items():
        resize = jax.jit(partial(resize_positions, rows=rows, columns=columns, offset=offset))
        resized = resize(tensors["embeddings.position_embeddings"])
        _assert_near(resized, arrays[f"{case}/{name}"], name)


@pytest.mark.parametrize("folder", FOLDERS)
def test_feature_maps_equal_the_reference(folder):
    model, variables = _load(folder)
    case, arrays = "case0_56x56", FOLDERS[folder][2]
    images = ((_pixels(folder, case) * STD + MEAN) * 2 - 1).astype(np.float32)
    model = model.clone(feature_blocks=(2, 1))
    maps = jax.jit(partial(model.apply, method=DINOv2.feature_maps))(variables, images)
    assert set(maps) == {"block1", "block2", "final"}
    assert maps["final"].shape == (2, 4, 4, model.width)
    for i in (1, 2):
        _assert_near(_tokens(maps[f"block{i}"]), arrays[f"{case}/hidden_{i}"][:, 1:], f"block{i}")
    _assert_near(_tokens(maps["final"]), arrays[f"{case}/patch_tokens"], "final")
    assert jax.eval_shape(multiscale_features, maps)["final/mean"].shape == (2, 1, model.width)


def test_bfloat16_stays_near_the_reference():
    folder, case = "dinov2_swiglu", "case1_28x28"
    model, variables = _load(folder, dtype=jnp.bfloat16)
    class_token, patches = jax.jit(model.apply)(variables, _pixels(folder, case))
    assert class_token.dtype == patches.dtype == jnp.float32
    _assert_near(class_token, FOLDERS[folder][2][f"{case}/cls"], "cls", tolerance=3e-2)


@pytest.mark.parametrize("folder", FOLDERS)
def test_weights_come_back_as_they_were(folder):
    _, tensors, _ = FOLDERS[folder]
    model, variables = _load(folder)
    back = disassemble(variables["params"], weights.table(model))
    assert set(back) == set(tensors) - {"embeddings.mask_token"}
    for name, array in back.items():
        np.testing.assert_array_equal(array, tensors[name])


@pytest.mark.parametrize("folder", FOLDERS)
def test_torch_hubs_names_are_read(folder):
    config, tensors, _ = FOLDERS[folder]
    model, variables = weights.load(tensors, config)
    hub = _hub(tensors)
    assert "blocks.1.attn.qkv.weight" in hub and "blocks.0.ls2.gamma" in hub
    assert not any(name.startswith(("embeddings", "encoder")) for name in hub)
    hub_model, hub_variables = weights.load(hub, config)
    jax.tree.map(np.testing.assert_array_equal, hub_variables, variables)
    assert model.position_offset == 0.0 and hub_model.position_offset == 0.1
    assert weights.load(hub, config, position_offset=0.0)[0] == model


def test_names_of_a_classifier_are_read(small):
    tensors = {f"dinov2.{name}": array for name, array in small.items()}
    tensors |= {"classifier.weight": np.zeros((5, 128)), "classifier.bias": np.zeros(5)}
    _, variables = weights.load(tensors, position_offset=0.0)
    assert len(jax.tree.leaves(variables)) == len(small)


@pytest.mark.parametrize(
    ("model", "millions"),
    [
        (DINOv2(width=384, depth=12, num_heads=6), 22.06),
        (DINOv2(width=768, depth=12, num_heads=12), 86.58),
        (DINOv2(), 304.37),
        (DINOv2(width=1536, depth=40, num_heads=24, swiglu=True), 1136.48),
    ],
    ids=["S", "B", "L", "g"],
)
def test_published_configs_give_the_published_sizes(model, millions):
    config = {
        "hidden_size": model.width,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.num_heads,
        "image_size": 518,
        "use_swiglu_ffn": model.swiglu,
    }
    assert weights.from_config(config) == model
    count = sum(array.size for array in _zeros(model).values())
    assert count / 1e6 == pytest.approx(millions, abs=0.01)


def test_sizes_are_read_off_the_tensors(small):
    model = DINOv2(width=384, depth=12, num_heads=6, position_offset=0.1)
    assert weights.load(_hub(_zeros(model)))[0] == model
    swiglu = SMALL.clone(swiglu=True)
    assert weights.load(_zeros(swiglu))[0] == swiglu
    assert weights.load(small)[0] == SMALL


def test_wrong_files_are_named(small):
    name = "encoder.layer.1.layer_scale1.lambda1"
    with pytest.raises(UserError, match=rf"^the file lacks {re.escape(name)}$"):
        weights.load({k: x for k, x in small.items() if k != name})
    with pytest.raises(UserError, match=r"^a\.pth holds register_tokens, which"):
        weights.load({**small, "register_tokens": np.zeros((1, 4, 64))}, origin="a.pth")
    with pytest.raises(UserError, match=re.escape(name) + r" of the file .*\(3,\).*\(64,\)"):
        weights.load({**small, name: np.zeros(3)})
    hub = _hub(small)
    with pytest.raises(UserError, match=rf"transformers' names, lacks {re.escape(name)}$"):
        weights.load({k: x for k, x in hub.items() if k != "blocks.1.ls1.gamma"})
    with pytest.raises(UserError, match=r"lacks .*layer\.0\.attention\.attention\.key\.bias"):
        weights.load({k: x for k, x in hub.items() if k != "blocks.0.attn.qkv.bias"})
    with pytest.raises(UserError, match=r"blocks\.0\.attn\.qkv\.bias .*\(64,\)"):
        weights.load({**hub, "blocks.0.attn.qkv.bias": np.zeros(64)})
    with pytest.raises(UserError, match=r"holds blocks\.0\.norm3\.bias, which"):
        weights.load({**hub, "blocks.0.norm3.bias": np.zeros(64)})
    with pytest.raises(UserError, match=r"lacks embeddings\.patch_embeddings\.projection\.weight"):
        weights.load({"conv1.weight": np.zeros(3)})
    with pytest.raises(UserError, match=r"embeddings\.position_embeddings .* 3 axes.*\(10, 64\)"):
        weights.load({**small, "embeddings.position_embeddings": np.zeros((10, 64))})
    with pytest.raises(UserError, match=r"48 channels, not a multiple of 64: .*config\.json"):
        weights.load(FOLDERS["dinov2"][1])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_type", "vit"),
        ("hidden_act", "gelu_new"),
        ("layer_norm_eps", 1e-5),
        ("num_channels", 4),
        ("qkv_bias", False),
        ("num_attention_heads", 5),
        ("image_size", [518, 518]),
    ],
)
def test_another_architecture_is_refused(field, value):
    with pytest.raises(UserError, match=rf"{field} .*{re.escape(str(value))}"):
        weights.from_config({**FOLDERS["dinov2"][0], field: value})


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        (SMALL, (1, 8, 8, 4), r"\[b, h, w, 3\].*\(1, 8, 8, 4\)"),
        (SMALL, (8, 8, 3), r"\[b, h, w, 3\].*\(8, 8, 3\)"),
        (SMALL, (1, 8, 10, 3), r"patch_size 4 .*8x10.*image_size"),
        (SMALL.clone(num_heads=3), (1, 8, 8, 3), r"width 64, found 3 heads"),
        (SMALL.clone(feature_blocks=(0,)), (1, 8, 8, 3), r"1 to 2 .*\(0,\)"),
        (SMALL.clone(feature_blocks=(1, 3)), (1, 8, 8, 3), r"1 to 2 .*\(1, 3\)"),
        (SMALL.clone(final_feature=False), (1, 8, 8, 3), r"feature_blocks must name a block"),
    ],
)
@pytest.mark.parametrize("method", [DINOv2.__call__, DINOv2.feature_maps])
def test_what_does_not_fit_is_refused(model, shape, message, method):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(
            lambda key, x: model.init(key, x, method=method), jax.random.key(0), jnp.zeros(shape)
        )


def test_images_are_resized_to_a_size_that_fits(small):
    model, variables = weights.load(small)
    model = model.clone(image_size=20, final_feature=False, feature_blocks=(1,))
    images = jnp.zeros((2, 9, 31, 3))
    maps = jax.eval_shape(partial(model.apply, method=DINOv2.feature_maps), variables, images)
    assert set(maps) == {"block1"} and maps["block1"].shape == (2, 5, 5, 64)


def test_float32_products_are_at_the_highest_precision(small):
    model, variables = weights.load(small)

    def gradient(pixels):
        return jax.grad(lambda x: model.apply(variables, x)[0].sum())(pixels)

    text = jax.jit(gradient).lower(jnp.zeros((1, 16, 16, 3))).as_text()
    products = [x for x in text.splitlines() if "dot_general" in x or "stablehlo.convolution" in x]
    assert len(products) > 30
    assert all(line.count("HIGHEST") == 2 for line in products)


def test_gradients_reach_the_image(small):
    model, variables = weights.load(small)
    model = model.clone(feature_blocks=(1,), image_size=12)

    @jax.jit
    def gradient(variables, images):
        def total(images):
            maps = model.apply(variables, images, method=DINOv2.feature_maps)
            return sum((x**3).sum() for x in maps.values())

        return jax.grad(total)(images)

    images = np.random.default_rng(1).uniform(-1, 1, (2, 10, 14, 3)).astype(np.float32)
    found = gradient(variables, images)
    assert np.isfinite(found).all() and (np.abs(found).max((1, 2, 3)) > 0).all()
