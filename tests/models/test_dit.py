"""The generator against the reference numbers, its parameter counts and its properties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import read_release
import release_names

from drifting_jax.models.dit import DiT, stack_blocks, unstack_blocks
from drifting_jax.models.rematerialisation import POLICIES
from drifting_jax.weights.release import model_of

FLOAT = jnp.float32


def _generator(config: dict) -> DiT:
    """`DiT` with the settings of a released generator, in float32."""
    model = model_of({"kind": "gen", "model_config": config})
    return model.clone(dtype=FLOAT, attention_dtype=None, remat=False)


def _shapes(model: DiT, batch: int = 1) -> dict:
    side = model.image_size
    return jax.eval_shape(
        model.init,
        jax.random.key(0),
        jax.ShapeDtypeStruct((batch, side, side, model.in_channels), FLOAT),
        jax.ShapeDtypeStruct((batch,), jnp.int32),
        jax.ShapeDtypeStruct((batch, model.num_style_books), jnp.int32),
        jax.ShapeDtypeStruct((batch,), FLOAT),
    )["params"]


@pytest.mark.parametrize("name", ["latent", "pixel", "flags_off"])
def test_equals_the_reference(name):
    arrays = read_release.load(f"C_generator_{name}.npz")
    model = _generator(read_release.meta(arrays, "config"))
    params = release_names.generator_params(read_release.load_params(f"C_generator_{name}.npz"))
    params = jax.tree.map(jnp.asarray, params)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, _shapes(model))

    @jax.jit
    def run(params, noise, labels, styles, cfg_scale):
        variables = {"params": params}
        condition = model.apply(variables, labels, styles, cfg_scale, method=DiT.condition)
        images, state = model.apply(
            variables,
            noise,
            labels,
            styles,
            cfg_scale,
            capture_intermediates=True,
            mutable=["intermediates"],
        )
        return condition, images, state["intermediates"]

    arguments = [arrays[f"in/{key}"] for key in ("x", "c", "noise_labels", "cfg_scale")]
    condition, images, inner = run(params, *arguments)
    ours = {
        "out/cond": condition,
        "out/samples": images,
        "mid/LightningDiT_0/TorchLinear_0": inner["patch_embedding"],
        "mid/LightningDiT_0/blocks_0/Attention_0": inner["block_0"]["attention"],
        "mid/LightningDiT_0/blocks_0": inner["block_0"],
        "mid/LightningDiT_0/blocks_1": inner["block_1"],
        "mid/LightningDiT_0/FinalLayer_0": inner["final"],
    }
    for key, value in ours.items():
        if key.startswith("mid/"):
            value = value["__call__"][0]
        expected = arrays[key]
        if key.endswith("FinalLayer_0"):  # ours computes it only for the tokens of the image
            expected = expected[:, model.num_context_tokens :]
        np.testing.assert_allclose(value, expected, atol=1e-5, rtol=0, err_msg=key)

    ones = np.ones_like(arguments[3])
    condition, images, _ = run(params, *arguments[:3], ones)
    np.testing.assert_allclose(condition, arrays["out/cond_cfg1"], atol=1e-5, rtol=0)
    np.testing.assert_allclose(images, arrays["out/samples_cfg1"], atol=1e-5, rtol=0)
    assert images.dtype == jnp.float32


@pytest.mark.parametrize(
    ("name", "attention_dtype"),
    [("bf16", None), ("bf16_longrope", None), ("bf16_attn_fp32", FLOAT)],
)
def test_bfloat16_is_as_close_as_the_reference_to_itself(name, attention_dtype):
    """The reference's two ways of running (eager, fused) are up to 3.1e-2 apart."""
    arrays = read_release.load(f"C_generator_{name}.npz")
    model = _generator(read_release.meta(arrays, "config")).clone(
        dtype=jnp.bfloat16, attention_dtype=attention_dtype
    )
    params = release_names.generator_params(read_release.load_params(f"C_generator_{name}.npz"))
    arguments = [arrays[f"in/{key}"] for key in ("x", "c", "noise_labels", "cfg_scale")]
    images = np.asarray(jax.jit(model.apply)({"params": params}, *arguments))
    eager, fused = arrays["out/samples"], arrays["out/samples_jit"]
    apart = np.sqrt(np.mean(np.square(eager - fused)))
    for expected in (eager, fused):
        np.testing.assert_allclose(images, expected, atol=3.2e-2, rtol=0)
        assert np.sqrt(np.mean(np.square(images - expected))) < 1.25 * apart
    assert images.dtype == np.float32
    condition = model.apply({"params": params}, *arguments[1:], method=DiT.condition)
    np.testing.assert_array_equal(condition.astype(FLOAT), arrays["out/cond"])
    assert np.abs(images - arrays["out/samples_float32_model"]).max() > 1e-3  # it is bfloat16


@pytest.mark.slow
@pytest.mark.parametrize("remat", POLICIES)
@pytest.mark.parametrize("scan", [False, True])
def test_scan_and_remat_change_no_number(scan, remat):
    model = DiT(**LATENT | {"image_size": 8}, width=16, depth=3, num_heads=2, num_classes=5)
    key = jax.random.key(0)
    noise, labels, cfg_scale = jax.random.normal(key, (2, 8, 8, 4)), np.array([1, 4]), np.ones(2)
    styles = np.full((2, 32), 3)
    params = model.init(key, noise, labels, styles, cfg_scale)["params"]
    params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(key, x.shape), params)
    other = model.clone(scan=scan, remat=remat)

    def gradient(model, params):
        def loss(params):
            images = model.apply({"params": params}, noise, labels, styles, cfg_scale)
            return jnp.sum(jnp.square(images))

        return jax.jit(jax.grad(loss))(params)

    found = gradient(other, stack_blocks(params) if scan else params)
    expected = gradient(model, params)
    scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(expected))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * scale),
        unstack_blocks(found) if scan else found,
        expected,
    )


@pytest.mark.slow
def test_a_scan_starts_like_the_blocks_one_by_one():
    model = DiT(**LATENT, width=64, depth=3, num_heads=2, num_classes=5, scan=True)
    assert jax.eval_shape(unstack_blocks, _shapes(model)) == _shapes(model.clone(scan=False))
    small = model.clone(image_size=4)
    params = small.init(
        jax.random.key(0),
        np.zeros((1, 4, 4, 4)),
        np.zeros(1, int),
        np.zeros((1, 32), int),
        np.ones(1),
    )["params"]
    kernel = np.asarray(params["blocks"]["attention"]["qkv"]["kernel"])
    bound = (6 / (64 + 192)) ** 0.5  # Xavier-uniform, per block
    assert 0.9 * bound < np.abs(kernel).max() <= bound
    assert np.abs(kernel[0] - kernel[1]).max() > bound


LATENT = {"image_size": 32, "in_channels": 4, "out_channels": 4, "patch_size": 2}
PIXEL = {"image_size": 256, "in_channels": 3, "out_channels": 3, "patch_size": 16}
BASE = {"width": 768, "depth": 12, "num_heads": 12}
LARGE = {"width": 1024, "depth": 24, "num_heads": 16}


@pytest.mark.parametrize(
    ("data", "size", "millions"),
    [(LATENT, BASE, 133), (LATENT, LARGE, 463), (PIXEL, BASE, 134), (PIXEL, LARGE, 464)],
)
def test_parameter_counts_of_the_paper(data, size, millions):
    """As in Table 8."""
    params = _shapes(DiT(num_classes=1000, **data, **size))
    assert round(sum(leaf.size for leaf in jax.tree.leaves(params)) / 1e6) == millions


def _tiny(**fields) -> DiT:
    defaults = {
        "image_size": 4,
        "in_channels": 2,
        "out_channels": 1,
        "patch_size": 2,
        "width": 16,
        "depth": 1,
        "num_heads": 2,
        "num_classes": 3,
        "num_context_tokens": 2,
        "num_style_books": 2,
        "styles_per_book": 3,
    }
    return DiT(**{**defaults, **fields})


def _inputs(batch: int = 3) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(batch, 4, 4, 2)).astype(np.float32)
    labels = np.arange(batch, dtype=np.int32) % 3
    styles = rng.integers(0, 3, (batch, 2)).astype(np.int32)
    return noise, labels, styles, np.linspace(1, 4, batch, dtype=np.float32)


def _random_params(model: DiT) -> dict:
    """Parameters without zeros, drawn without compiling the initialisation."""
    rng = np.random.default_rng(1)
    draw = jax.tree.map(lambda leaf: 0.3 * rng.normal(size=leaf.shape), _shapes(model))
    return {"params": jax.tree.map(lambda leaf: jnp.asarray(leaf, FLOAT), draw)}


def test_starts_at_zero_with_parameters_in_float32():
    model = _tiny(dtype=jnp.bfloat16)
    params = jax.jit(model.init)(jax.random.key(0), *_inputs())
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    images = jax.jit(model.apply)(params, *_inputs())
    assert images.shape == (3, 4, 4, 1)
    assert images.dtype == jnp.float32
    np.testing.assert_array_equal(images, 0)
    modulation = params["params"]["block_0"]["modulation"]["linear"]["kernel"]
    np.testing.assert_array_equal(modulation, 0)
    embedding = params["params"]["style_books"]
    np.testing.assert_allclose(np.std(embedding), 0.02, rtol=0.3)


def test_every_input_matters_and_rows_are_independent():
    model = _tiny()
    noise, labels, styles, scales = _inputs()
    params = _random_params(model)
    apply = jax.jit(lambda *arguments: model.apply(params, *arguments))
    images = np.asarray(apply(noise, labels, styles, scales))
    changed_styles = styles.copy()
    changed_styles[1, 0] = (styles[1, 0] + 1) % 3
    changes = {
        "noise": (noise + 0.1 * np.eye(3, dtype=np.float32)[1][:, None, None, None],),
        "labels": (noise, np.array([0, 2, 2], np.int32)),
        "styles": (noise, labels, changed_styles),
        "scale": (noise, labels, styles, scales + np.array([0, 1, 0], np.float32)),
    }
    for name, changed in changes.items():
        arguments = (*changed, *(noise, labels, styles, scales)[len(changed) :])
        difference = np.abs(np.asarray(apply(*arguments)) - images).max((1, 2, 3))
        assert difference[1] > 1e-4, name
        np.testing.assert_allclose(difference[[0, 2]], 0, atol=1e-6, err_msg=name)


def test_equal_styles_of_different_books_are_different_codes():
    model = _tiny()
    params = _random_params(model)
    books = np.asarray(params["params"]["style_books"])
    styles = np.array([[0, 1], [1, 0]], np.int32)
    condition = jax.jit(lambda *a: model.apply(params, *a, method=DiT.condition))
    labels, scales = np.zeros(2, np.int32), np.ones(2, np.float32)
    difference = np.subtract(*condition(labels, styles, scales))
    expected = books[0, 0] + books[1, 1] - books[0, 1] - books[1, 0]
    np.testing.assert_allclose(difference, expected, atol=1e-6)


def test_without_styles_and_context_tokens_their_parameters_are_absent():
    names = set(_shapes(_tiny(styles_per_book=0, num_context_tokens=0)))
    absent = {"style_books", "context_projection", "context_embedding"}
    assert set(_shapes(_tiny())) - names == absent


@pytest.mark.parametrize(
    ("position", "replacement", "message"),
    [
        (0, np.zeros((3, 4, 5, 2), np.float32), "noise must have shape"),
        (2, np.zeros((3, 5), np.int32), "styles must have shape"),
        (3, np.zeros(2, np.float32), "cfg_scale must have shape"),
    ],
)
def test_wrong_shapes_are_named(position, replacement, message):
    arguments = list(_inputs())
    arguments[position] = replacement
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(_tiny().init, jax.random.key(0), *arguments)


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"patch_size": 3}, "patch_size must divide image_size 4"), ({"num_heads": 3}, "num_heads")],
)
def test_wrong_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(_tiny(**fields).init, jax.random.key(0), *_inputs())
