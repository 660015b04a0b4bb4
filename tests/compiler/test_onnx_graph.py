"""Graphs of our networks, run by onnxruntime, give what the networks give."""

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from jax.export import symbolic_shape

from drifting_jax.compiler.onnx_graph import UnsupportedError, write_onnx
from drifting_jax.models.calls import apply
from drifting_jax.models.dit import DiT
from drifting_jax.models.unet import UNet
from drifting_jax.models.vae import VAE
from drifting_jax.weights.shapes import param_shapes

(BATCH,) = symbolic_shape("n")
SMALL = {
    "image_size": 4,
    "in_channels": 2,
    "out_channels": 3,
    "patch_size": 2,
    "width": 16,
    "depth": 2,
    "num_heads": 2,
    "num_classes": 5,
    "num_context_tokens": 2,
    "num_style_books": 2,
    "styles_per_book": 3,
}
INPUTS = {
    "noise": jax.ShapeDtypeStruct((BATCH, 4, 4, 2), jnp.float32),
    "labels": jax.ShapeDtypeStruct((BATCH,), jnp.int32),
    "styles": jax.ShapeDtypeStruct((BATCH, 2), jnp.int32),
    "alpha": jax.ShapeDtypeStruct((BATCH,), jnp.float32),
}


def random_params(model):
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape), x.dtype), param_shapes(model)
    )


def session_of(path):
    onnx.checker.check_model(str(path), full_check=True)
    return onnxruntime.InferenceSession(str(path))


def assert_agrees(model, path):
    """The graph of a generator gives its images, for two sizes of the batch."""
    params = random_params(model)
    write_onnx(path, lambda *x: apply(model, params, *x), INPUTS, output="images")
    session = session_of(path)
    assert [x.name for x in session.get_inputs()] == list(INPUTS)
    rng = np.random.default_rng(1)
    for size in (1, 3):
        given = {
            "noise": rng.normal(size=(size, 4, 4, 2)).astype(np.float32),
            "labels": rng.integers(0, 5, size).astype(np.int32),
            "styles": rng.integers(0, 3, (size, 2)).astype(np.int32),
            "alpha": rng.uniform(1, 4, size).astype(np.float32),
        }
        (found,) = session.run(["images"], given)
        expected = jax.jit(model.apply)({"params": params}, *given.values())
        assert np.std(expected) > 0.1
        np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"scan": True, "patch_size": 1},
        {"swiglu": False, "rms_norm": False, "rope": False, "qk_norm": False},
        {"num_context_tokens": 0, "styles_per_book": 0, "remat": "block"},
    ],
    ids=lambda changes: "-".join(changes) or "default",
)
def test_a_generator_agrees_for_any_batch(tmp_path, changes):
    model = DiT(**SMALL | changes)
    assert_agrees(model, tmp_path / "network.onnx")


def test_a_unet_agrees_for_any_batch(tmp_path):
    common = {
        name: SMALL[name]
        for name in ("image_size", "in_channels", "out_channels", "width", "num_heads",
                     "num_classes", "num_style_books", "styles_per_book")
    }  # fmt: skip
    model = UNet(
        **common,
        patch_size=1,
        multipliers=(1, 2),
        blocks_per_level=1,
        attention_sides=(4,),
        groups=4,
        dropout=0.5,  # of training alone
        condition_width=8,
        remat="block",
    )
    assert_agrees(model, tmp_path / "network.onnx")


def test_a_decoder_agrees(tmp_path):
    model = VAE(block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4)
    params, path = random_params(model), tmp_path / "network.onnx"
    inputs = {"latents": jax.ShapeDtypeStruct((BATCH, 3, 3, 4), jnp.float32)}

    def decode(latents):
        return apply(model, params, latents, method=VAE.decode_scaled)

    write_onnx(path, decode, inputs, output="images")
    latents = np.random.default_rng(1).normal(size=(2, 3, 3, 4)).astype(np.float32)
    (found,) = session_of(path).run(None, {"latents": latents})
    assert found.shape == (2, 6, 6, 3)
    np.testing.assert_allclose(found, jax.jit(decode)(latents), atol=1e-4, rtol=0)


def test_what_has_no_operator_is_named(tmp_path):
    inputs = {"x": jax.ShapeDtypeStruct((BATCH, 3), jnp.float32)}
    with pytest.raises(UnsupportedError, match="the primitive sort has no ONNX operator"):
        write_onnx(tmp_path / "x.onnx", lambda x: jnp.sort(x), inputs, output="y")
    assert not list(tmp_path.iterdir())
