"""The U-Net against float64 NumPy block by block, its parameter count and its properties."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import written_out_unet

from drifting_jax.models import generators
from drifting_jax.models.rematerialisation import POLICIES
from drifting_jax.models.unet import UNet, drop
from drifting_jax.weights.shapes import param_shapes

TINY = UNet(
    image_size=8,
    in_channels=2,
    out_channels=1,
    patch_size=2,
    width=4,
    num_heads=2,
    num_classes=3,
    multipliers=(1, 2),
    blocks_per_level=1,
    attention_sides=(4,),
    groups=2,
    condition_width=6,
    num_style_books=2,
    styles_per_book=3,
)
# A single level: the least that has every kind of block but those that change the side.
ONE_LEVEL = TINY.clone(multipliers=(1,), attention_sides=())
ALONE = ONE_LEVEL.clone(condition_width=0, num_classes=1, styles_per_book=0)


def random_params(model, scale=0.4):
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: jnp.float32(scale * rng.normal(size=leaf.shape)), param_shapes(model)
    )


def inputs(model, batch=3):
    rng = np.random.default_rng(0)
    noise = np.float32(rng.normal(size=(batch, 8, 8, 2)))
    labels = np.arange(batch, dtype=np.int32) % model.num_classes
    styles = rng.integers(0, 3, (batch, 2)).astype(np.int32)
    return noise, labels, styles, np.linspace(1, 4, batch, dtype=np.float32)


def dropout_keys(batch=3):
    return jax.vmap(jax.random.key)(jnp.arange(batch))


@pytest.mark.parametrize("model", [TINY, ALONE], ids=["conditioned", "alone"])
def test_every_block_equals_its_formula(model):
    params = random_params(model)
    run = functools.partial(model.apply, capture_intermediates=True, mutable=["intermediates"])
    images, state = jax.jit(run)({"params": params}, *inputs(model))
    found = state["intermediates"]
    double = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    expected = written_out_unet.maps(model, double, *inputs(model))
    assert images.shape == (3, 8, 8, 1) and images.dtype == jnp.float32
    np.testing.assert_allclose(images, expected.pop("images"), atol=1e-4, rtol=1e-4)
    assert expected.keys() == params.keys() - {"output_norm", "output_conv"}
    for name, value in expected.items():
        ours = found[name]["__call__"][0]
        np.testing.assert_allclose(ours, value, atol=1e-4, rtol=1e-4, err_msg=name)


def test_parameter_count_of_the_published_setting():
    """32.9 million for CIFAR-10 without classes: all that is trained, biases and norms included."""
    model = UNet(
        image_size=32, in_channels=3, out_channels=3, patch_size=1, width=128, num_heads=1,
        num_classes=1, condition_width=0,
    )  # fmt: skip

    def conv(c, d, size=3):
        return size * size * c * d + d

    def block(c, d):
        return 2 * c + conv(c, d) + 2 * d + conv(d, d) + (conv(c, d, 1) if c != d else 0)

    attention = 2 * 256 + 4 * conv(256, 256, 1)
    down = [(128, 128)] * 2 + [(128, 256)] + [(256, 256)] * 5
    up = [(512, 256)] * 8 + [(384, 256)] + [(384, 128)] + [(256, 128)] * 2
    resampled = conv(128, 128) + 2 * conv(256, 256) + 3 * conv(256, 256)
    middle = 2 * block(256, 256) + attention
    ends = conv(3, 128) + 2 * 128 + conv(128, 3)
    expected = sum(block(*x) for x in down + up) + 5 * attention + resampled + middle + ends
    count = sum(leaf.size for leaf in jax.tree.leaves(param_shapes(model)))
    assert count == expected == 32_856_707


def test_starts_at_zero_with_parameters_in_float32():
    model = ONE_LEVEL.clone(dtype=jnp.bfloat16)
    params = jax.jit(functools.partial(generators.init_generator, model=model))(jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    for block in ("middle_block0", "up0_block1"):
        for zero in (params[block]["second_conv"], params[block]["modulation"]["linear"]):
            np.testing.assert_array_equal(zero["kernel"], 0)
        bound = np.sqrt(6 / (9 * (len(params[block]["first_norm"]["scale"]) + 4)))
        assert 0.8 * bound < np.abs(params[block]["first_conv"]["kernel"]).max() <= bound
    np.testing.assert_array_equal(params["middle_attention"]["attention"]["out"]["kernel"], 0)
    np.testing.assert_array_equal(params["output_conv"]["kernel"], 0)
    np.testing.assert_array_equal(params["output_conv"]["bias"], 0)


def test_bfloat16_is_near_with_norms_in_float32():
    model = ONE_LEVEL.clone(dtype=jnp.bfloat16, attention_dtype=jnp.dtype("float32"))
    variables = {"params": random_params(model, 0.2)}
    expected = jax.jit(ONE_LEVEL.apply)(variables, *inputs(model))
    found = jax.jit(model.apply)(variables, *inputs(model))
    assert found.dtype == jnp.float32
    error = np.sqrt(np.square(found - expected).mean()) / np.std(expected)
    assert 1e-4 < error < 0.05
    text = jax.jit(model.apply).lower(variables, *inputs(model)).as_text()
    roots = [line for line in text.splitlines() if "rsqrt" in line]
    assert len(roots) > 10 and not any("bf16" in line for line in roots)


def test_gradients_reach_every_parameter():
    params = random_params(TINY)

    def loss(params):
        images = TINY.apply({"params": params}, *inputs(TINY), dropout_keys())
        return jnp.square(images).sum()

    gradients = jax.jit(jax.grad(loss))(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        size = float(jnp.abs(leaf).max())
        assert np.isfinite(size) and size > 1e-4, jax.tree_util.keystr(path)


def test_every_input_matters_and_rows_are_independent():
    model = ONE_LEVEL.clone(dropout=0.3)
    params = random_params(model)
    apply = jax.jit(lambda *arguments: model.apply({"params": params}, *arguments))
    names = ("noise", "labels", "styles", "scale", "dropout")
    given = dict(zip(names, (*inputs(model), dropout_keys()), strict=True))
    images = np.asarray(apply(*given.values()))
    styles = given["styles"].copy()
    styles[1, 0] = (styles[1, 0] + 1) % 3
    one = np.eye(3, dtype=np.float32)[1]
    changes = {
        "noise": given["noise"] + 0.1 * one[:, None, None, None],
        "labels": np.array([0, 2, 2], np.int32),
        "styles": styles,
        "scale": given["scale"] + one,
        "dropout": jax.vmap(jax.random.key)(jnp.array([0, 7, 2])),
    }
    for name, changed in changes.items():
        difference = np.abs(np.asarray(apply(*(given | {name: changed}).values())) - images)
        difference = difference.max((1, 2, 3))
        assert difference[1] > 1e-5, name
        np.testing.assert_allclose(difference[[0, 2]], 0, atol=1e-6, err_msg=name)


def test_without_a_condition_the_noise_alone_counts():
    params = random_params(ALONE)
    assert "condition" not in params and "modulation" not in params["middle_block0"]
    noise, labels, styles, alpha = inputs(ALONE)
    apply = jax.jit(lambda *arguments: ALONE.apply({"params": params}, *arguments))
    found = apply(noise, labels, styles, alpha)
    np.testing.assert_array_equal(found, apply(noise, labels, styles + 1, alpha + 1))


def test_dropout_zeros_its_share_by_the_key_of_each_sample():
    x = np.ones((3, 16, 16, 8), np.float32)
    keys = dropout_keys()
    found = np.asarray(jax.jit(drop, static_argnums=2)(x, keys, 0.25))
    assert set(np.unique(found)) == {0, np.float32(1 / 0.75)}
    np.testing.assert_allclose((found == 0).mean((1, 2, 3)), 0.25, atol=0.04)
    assert (found[0] != found[1]).any()
    np.testing.assert_array_equal(
        jax.jit(drop, static_argnums=2)(x[1:2], keys[1:2], 0.25), found[1:2]
    )


def test_keys_of_dropout_are_those_of_no_other_draw():
    """Nor do noise and styles depend on whether there is dropout."""
    key = jax.random.key(5)
    dropout = TINY.clone(dropout=0.1)
    assert generators.dropout_inputs(key, TINY) == ()
    (found,) = generators.dropout_inputs(key, dropout)
    for other in (key, *jax.random.split(key)):
        assert (jax.random.key_data(found) != jax.random.key_data(other)).any()
    for ours, theirs in zip(
        generators.draw_inputs(key, TINY), generators.draw_inputs(key, dropout), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("remat", POLICIES[1:])
def test_remat_changes_no_number(remat):
    """Neither does it change the masks of the dropout, which are drawn again."""
    params = random_params(TINY)

    def gradient(model):
        def loss(params):
            images = model.apply({"params": params}, *inputs(model), dropout_keys())
            return jnp.square(images).sum()

        return jax.jit(jax.grad(loss))(params)

    model = TINY.clone(dropout=0.3)
    expected, found = gradient(model), gradient(model.clone(remat=remat))
    scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(expected))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * scale), found, expected
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"patch_size": 3}, "patch_size must divide image_size 8, found 3"),
        ({"multipliers": (1, 1, 1, 1)}, "divide by 2 .* found 4 and 4 levels"),
        ({"attention_sides": (8,)}, r"among the sides of the levels, 4, 2; found \(8,\)"),
        ({"num_heads": 3}, "num_heads must divide the width 4, found 3"),
        ({"groups": 3}, "groups must divide the 4 channels"),
        ({"condition_width": 0}, "images of one class; found 3 classes"),
    ],
)
def test_wrong_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(TINY.clone(**fields).init, jax.random.key(0), *inputs(TINY))


@pytest.mark.parametrize(
    ("position", "replacement", "message"),
    [
        (0, np.zeros((3, 8, 8, 1), np.float32), "noise must have shape"),
        (2, np.zeros((3, 5), np.int32), "styles must have shape"),
        (3, np.zeros(2, np.float32), "cfg_scale must have shape"),
    ],
)
def test_wrong_shapes_are_named(position, replacement, message):
    arguments = list(inputs(TINY))
    arguments[position] = replacement
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(TINY.init, jax.random.key(0), *arguments)
