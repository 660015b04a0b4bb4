"""Stable Diffusion's autoencoder against diffusers' numbers, its file formats, its gradients."""

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file

from drifting_jax.errors import UserError
from drifting_jax.models.vae import VAE, split_moments
from drifting_jax.weights import vae as weights
from drifting_jax.weights.mapping import disassemble

FOLDER = Path(__file__).parents[1] / "fixtures" / "torch" / "vae"
CONFIG = json.loads((FOLDER / "config.json").read_text())
FULL = json.loads((FOLDER / "keys_full.json").read_text())
OLD_NAMES = json.loads((FOLDER / "legacy_attention_names.json").read_text())
ARRAYS = np.load(FOLDER / "io.npz")
ATTENTION = "encoder.mid_block.attentions.0"


@pytest.fixture(scope="module")
def tensors():
    return load_file(FOLDER / "diffusion_pytorch_model.safetensors")


@pytest.fixture(scope="module")
def loaded(tensors):
    return weights.load(tensors, CONFIG)


def _array(name):
    """A stored array, [b, c, h, w] there and [b, h, w, c] here."""
    return ARRAYS[name].transpose(0, 2, 3, 1)


def _assert_near(ours, expected, tolerance=1e-4, name=""):
    """Equal to `tolerance` relative to the largest expected magnitude."""
    assert ours.shape == expected.shape, (name, ours.shape, expected.shape)
    error = np.abs(np.asarray(ours, np.float64) - expected).max() / np.abs(expected).max()
    assert error <= tolerance, (name, error)


@pytest.fixture(scope="module")
def run(loaded):
    """Jitted (output, every module's output by path) of a method of the network."""
    model, variables = loaded

    @partial(jax.jit, static_argnums=0)
    def call(method, x):
        output, state = model.apply(
            variables, x, method=method, capture_intermediates=True, mutable=["intermediates"]
        )
        maps = flatten_dict(state["intermediates"], sep="/")
        return output, {k.removesuffix("/__call__"): v[0] for k, v in maps.items()}

    return call


def _our_path(tap):
    """ "enc_down_0_resnet_1" -> "encoder/down0/resnet1"."""
    side, _, rest = tap.partition("_")
    rest = rest.replace("conv_in", "conv.in").replace("mid_attn", "mid/attention")
    for kind in ("down", "up", "resnet"):
        rest = rest.replace(f"{kind}_", f"{kind}")
    rest = rest.replace("_downsampler", "/downsample").replace("_resnet", "/resnet")
    path = {"enc": "encoder", "dec": "decoder"}[side]
    return path if rest == "out" else f"{path}/{rest.replace('.', '_')}"


def test_layers_equal_the_reference(run):
    maps = run("encode", _array("case0/image"))[1] | run("decode", _array("case0/latent"))[1]
    taps = [name for name in ARRAYS.files if name.startswith("case0/tap_")]
    assert len(taps) == 15
    for name in taps:
        ours = maps[_our_path(name.removeprefix("case0/tap_"))]
        _assert_near(ours[:1], _array(name), 3e-5, name)


@pytest.mark.parametrize("case", ["case0", "case1"])
def test_outputs_equal_the_reference(run, case):
    (mean, log_variance), maps = run("encode", _array(f"{case}/image"))
    ours = {
        "moments": maps["quant_conv"],
        "mean": mean,
        "logvar": log_variance,
        "decoded": run("decode", _array(f"{case}/latent"))[0],
    }
    for name, array in ours.items():
        _assert_near(array, _array(f"{case}/{name}"), 3e-5, name)
    _assert_near(ours["moments"], _array(f"{case}/moments_f64"), 3e-5)
    _assert_near(ours["decoded"], _array(f"{case}/decoded_f64"), 3e-5)


@pytest.mark.parametrize("case", ["case0", "case1"])
def test_samples_equal_the_reference(loaded, case):
    """A sample of the posterior is mean + exp(log_variance / 2) * noise."""
    mean, log_variance = split_moments(jnp.asarray(_array(f"{case}/moments")))
    noise = _array(f"{case}/eps").reshape(mean.shape)
    sample = mean + np.exp(np.asarray(log_variance) / 2) * noise
    _assert_near(sample, _array(f"{case}/sample"), 1e-6)
    _assert_near(loaded[0].scaling_factor * sample, _array(f"{case}/model_latent"), 1e-6)


def test_moments_are_clipped_as_in_the_reference():
    mean, log_variance = split_moments(jnp.asarray(_array("clamp/moments")))
    np.testing.assert_array_equal(mean, _array("clamp/mean"))
    np.testing.assert_array_equal(log_variance, _array("clamp/logvar"))
    low = split_moments(jnp.full((1, 2), -50.0))[1]
    np.testing.assert_array_equal(low, [[-30.0]])


def test_decode_scaled_undoes_the_scale(loaded, run):
    latents = _array("case0/latent")
    assert loaded[0].scaling_factor == 0.18215
    scaled = np.float32(0.18215) * latents
    _assert_near(run("decode_scaled", scaled)[0], _array("case0/decoded"), 3e-5)


def test_bfloat16_is_near_and_returns_float32(loaded):
    variables = loaded[1]
    model = weights.from_config(CONFIG, dtype=jnp.bfloat16)
    decoded = jax.jit(partial(model.apply, method="decode"))(variables, _array("case0/latent"))
    assert decoded.dtype == jnp.float32
    expected = _array("case0/decoded")
    assert np.sqrt(np.square(decoded - expected).mean()) < 0.05 * expected.std()


@pytest.mark.slow
def test_gradients_through_the_decoder(loaded):
    """Against a finite difference; the same where activations are computed again."""
    model, variables = loaded
    latents = jnp.asarray(_array("case0/latent")[:1, :4, :6])
    towards = jax.random.normal(jax.random.key(0), latents.shape)

    def loss(model, params, latents):
        images = model.apply({"params": params}, latents, method="decode")
        return jnp.square(images).mean()

    plain = jax.jit(jax.grad(partial(loss, model), argnums=(0, 1)))
    remat = jax.jit(jax.grad(partial(loss, model.clone(remat=True)), argnums=(0, 1)))
    params = jax.tree.map(jnp.asarray, variables["params"])
    gradients = plain(params, latents)
    value = jax.jit(partial(loss, model))
    step = 1e-3
    difference = value(params, latents + step * towards) - value(params, latents - step * towards)
    np.testing.assert_allclose((gradients[1] * towards).sum(), difference / (2 * step), rtol=2e-3)
    again, expected = jax.tree.leaves(remat(params, latents)), jax.tree.leaves(gradients)
    # Relative to the largest: the gradient of the keys' bias is nothing but rounding.
    rounding = 1e-6 * max(np.abs(leaf).max() for leaf in expected)
    for ours, leaf in zip(again, expected, strict=True):
        np.testing.assert_allclose(ours, leaf, rtol=1e-5, atol=rounding)
    text = str(jax.make_jaxpr(partial(loss, model.clone(remat=True)))(params, latents))
    assert text.count("remat") == len(model.block_out_channels)


def test_float32_products_are_at_the_highest_precision(loaded):
    model, variables = loaded
    image = jax.ShapeDtypeStruct((1, 4, 4, 3), jnp.float32)
    text = jax.jit(model.apply).lower(variables, image).as_text()
    products = [l for l in text.splitlines() if "dot_general" in l or "convolution(" in l]
    assert len(products) > 30
    assert all("HIGHEST" in line for line in products)


def test_sides_that_do_not_divide_are_rounded_down():
    model = VAE(block_out_channels=(4, 4, 8), layers_per_block=1, norm_num_groups=2)
    image = jax.ShapeDtypeStruct((1, 23, 18, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    mean, log_variance = jax.eval_shape(partial(model.apply, method="encode"), variables, image)
    assert mean.shape == log_variance.shape == (1, 5, 4, 4)
    images = jax.eval_shape(partial(model.apply, method="decode"), variables, mean)
    assert images.shape == (1, 20, 16, 3)


@pytest.mark.parametrize(
    ("method", "shape", "message"),
    [
        ("encode", (1, 8, 8, 4), r"images must be \[b, h, w, 3\]"),
        ("encode", (1, 8, 1, 3), "sides of at least 2, found 8x1"),
        ("decode", (1, 8, 8, 3), r"latents must be \[b, h, w, 4\]"),
        ("decode", (8, 8, 4), r"latents must be \[b, h, w, 4\]"),
    ],
)
def test_shapes_are_checked(loaded, method, shape, message):
    model, variables = loaded
    with pytest.raises(ValueError, match=message):
        model.apply(variables, jnp.zeros(shape), method=method)


def _assert_same_params(variables, expected):
    jax.tree.map(np.testing.assert_array_equal, variables, expected)


def test_old_attention_names_and_convolutions(tensors, loaded):
    old = {OLD_NAMES.get(name, name): tensor for name, tensor in tensors.items()}
    _assert_same_params(weights.load(old, CONFIG)[1], loaded[1])
    for names in (OLD_NAMES, {name: name for name in OLD_NAMES}):
        convolved = {names.get(name, name): tensor for name, tensor in tensors.items()}
        for name in names.values():
            if name.endswith("weight"):
                convolved[name] = convolved[name][:, :, None, None]
        _assert_same_params(weights.load(convolved, CONFIG)[1], loaded[1])


def test_half_precision_files_become_float32(tensors, loaded):
    half = {name: tensor.astype(np.float16) for name, tensor in tensors.items()}
    variables = weights.load(half, CONFIG)[1]
    for ours, expected in zip(*map(jax.tree.leaves, (variables, loaded[1])), strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_array_equal(ours, expected.astype(np.float16))


def test_the_file_comes_back(tensors, loaded):
    model, variables = loaded
    back = disassemble(variables["params"], weights.table(model))
    assert back.keys() == tensors.keys()
    jax.tree.map(np.testing.assert_array_equal, back, dict(tensors))


@pytest.mark.parametrize("naming", ["diffusers_current", "legacy_attention"])
@pytest.mark.parametrize("config", [None, FULL["config"]])
def test_the_published_size_loads(naming, config):
    zeros = {k: np.broadcast_to(np.float32(0), shape) for k, shape in FULL[naming].items()}
    model, variables = weights.load(zeros, config)
    assert model == VAE() and model.downsampling == 8
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == FULL["n_params"]


@pytest.mark.parametrize(
    ("widths", "depth", "channels"), [((4, 8, 8, 16), 3, (1, 3, 16)), ((8,), 1, (4, 1, 2))]
)
def test_other_sizes_have_a_table(widths, depth, channels):
    config = dict(zip(("in_channels", "out_channels", "latent_channels"), channels, strict=True))
    config |= {"block_out_channels": widths, "layers_per_block": depth, "norm_num_groups": 2}
    model = weights.from_config(config)
    image = jax.ShapeDtypeStruct((1, 16, 16, channels[0]), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    params = jax.tree.map(
        lambda leaf: np.arange(leaf.size, dtype=np.float32).reshape(leaf.shape), shapes
    )
    foreign = disassemble(params, weights.table(model))
    _assert_same_params(weights.load(foreign, config)[1], {"params": params})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decoder.conv_in.bias": None}, "vae.safetensors lacks decoder.conv_in.bias"),
        ({"decoder.extra": np.zeros(3)}, "holds decoder.extra"),
        (
            {"quant_conv.bias": np.zeros(3)},
            r"quant_conv.bias of vae.safetensors has the shape \(3,\)",
        ),
        (
            {f"{ATTENTION}.to_q.weight": np.zeros((48, 48, 3, 3))},
            r"to_q.weight of .* \(48, 48, 3, 3\)",
        ),
        ({f"{ATTENTION}.query.bias": np.zeros(48)}, "holds both .*query.bias and .*to_q.bias"),
    ],
)
def test_wrong_tensors_are_named(tensors, change, message):
    changed = {k: v for k, v in (tensors | change).items() if v is not None}
    with pytest.raises(UserError, match=message):
        weights.load(changed, CONFIG, origin="vae.safetensors")


def test_config():
    model = weights.from_config(CONFIG)
    assert (model.block_out_channels, model.layers_per_block) == ((24, 48), 1)
    assert (model.norm_num_groups, model.latent_channels) == (8, 4)
    assert weights.from_config(CONFIG | {"scaling_factor": 0.13025}).scaling_factor == 0.13025


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "VQModel"}, "_class_name must be 'AutoencoderKL', found 'VQModel'"),
        ({"act_fn": "relu"}, "act_fn must be 'silu', found 'relu'"),
        ({"use_quant_conv": False}, "use_quant_conv must be True"),
        ({"shift_factor": 0.1159}, "shift_factor must be None"),
        (
            {"up_block_types": ["UpDecoderBlock2D", "AttnUpDecoderBlock2D"]},
            "up_block_types must be",
        ),
    ],
)
def test_other_variants_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        weights.from_config(CONFIG | change)
