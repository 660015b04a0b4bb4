"""Composed frozen encoders: the release's set of features, and gradients through the decoder."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import read_release
import release_names

from drifting_jax.method.encoders import (
    FeatureFunction,
    autoencoder_features,
    compose,
    convnext_features,
    map_features,
    through_decoder,
)
from drifting_jax.method.features import raw_features
from drifting_jax.models.resnet_mae import ResNetMAE
from drifting_jax.models.vae import VAE
from drifting_jax.weights import convnext, release

CONVNEXT_NAMES = {
    **{f"convenxt_stage_{i}_mean": f"convnext/stage{i + 1}/mean" for i in range(4)},
    **{f"convenxt_stage_{i}_std": f"convnext/stage{i + 1}/std" for i in range(4)},
    **{f"convenxt_stage_{i}": f"convnext/stage{i + 1}" for i in (1, 2, 3)},
    "global_mean": "convnext/pooled",
    "global_std": "convnext/last/std",
    "global": "raw",
    "norm_x": "input/rms",
}


def released_name(key):
    """Our name of a key of the release's composed features."""
    if key in CONVNEXT_NAMES:
        return CONVNEXT_NAMES[key]
    for statistic in ("mean", "std"):
        key = key.replace(f"_{statistic}_2", f"/{statistic}_2x2")
        key = key.replace(f"_{statistic}_4", f"/{statistic}_4x4")
        key = key.replace(f"_{statistic}", f"/{statistic}")
    base, *rest = key.split("/")
    return "/".join([release_names.map_name(base), *rest])


def test_autoencoder_and_convnext_give_the_features_of_the_release():
    arrays = read_release.load("E_convnextv2.npz")
    mae_config = read_release.meta(read_release.load("D_mae_pixel.npz"), "config")
    mae = release.model_of({"kind": "mae", "model_config": mae_config})
    tensors = {k[3:]: arrays[k] for k in arrays.files if k.startswith("hf/")}
    sizes = read_release.meta(arrays, "config")
    model, variables = convnext.load(
        tensors, {"depths": sizes["depths"], "hidden_sizes": sizes["dims"]}
    )
    params = release_names.encoder_params(read_release.load_params("D_mae_pixel.npz"))
    feature_function = compose(
        {"": autoencoder_features(mae), "convnext": convnext_features(model)}
    )
    images = arrays["activation_fn/in/x_int8"] * arrays["activation_fn/in/x_scale"]
    found = jax.jit(feature_function)({"": {"params": params}, "convnext": variables}, images)
    found |= raw_features(images)
    shapes = read_release.meta(arrays, "activation_fn/shapes")
    assert {released_name(key): tuple(shape) for key, shape in shapes.items()} == {
        name: x.shape for name, x in found.items()
    }
    keys = [k for k in arrays.files if k.startswith("activation_fn/act/")]
    for key in keys:
        expected = arrays[key]
        error = np.abs(found[released_name(key.split("/")[-1])] - expected).max()
        assert error < 2e-5 * np.abs(expected).max(), key


def small_autoencoder():
    model = ResNetMAE(3, 8, 2, (1, 1), groups=4, input_patch_size=2)
    images = np.random.default_rng(0).uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)
    return model, jax.jit(model.init)(jax.random.key(0), images, np.zeros((2, 8, 8))), images


@pytest.mark.slow
def test_latents_go_through_the_decoder_with_their_gradients():
    encoder, encoder_variables, _ = small_autoencoder()
    vae = VAE(block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4)
    latents = 0.1 * jax.random.normal(jax.random.key(1), (2, 8, 8, 4))
    images = np.zeros((2, 16, 16, 3), np.float32)
    variables = {"vae": vae.init(jax.random.key(2), images), "encoder": encoder_variables}
    direct = autoencoder_features(encoder)
    composed = through_decoder(vae, direct)

    def loss(function, variables, x):
        return sum(jnp.sum(jnp.square(f)) for f in function(variables, x).values())

    value, gradient = jax.jit(jax.value_and_grad(lambda x: loss(composed, variables, x)))(latents)
    decoded = vae.apply(variables["vae"], latents, method=VAE.decode_scaled)
    np.testing.assert_allclose(value, loss(direct, encoder_variables, decoded), rtol=1e-5)
    inner = jax.grad(lambda x: loss(direct, encoder_variables, x))(decoded)
    _, pull = jax.vjp(lambda x: vae.apply(variables["vae"], x, method=VAE.decode_scaled), latents)
    expected = pull(inner)[0]
    np.testing.assert_allclose(gradient, expected, atol=1e-4 * np.abs(expected).max())
    assert np.abs(gradient).max() > 0


def test_features_of_one_name_are_refused():
    model, variables, images = small_autoencoder()
    raw = FeatureFunction(lambda _, x: x, raw_features)
    both = compose({"": map_features(model), "a": raw})
    names = set(jax.eval_shape(both, {"": variables}, images))
    assert {"stem", "stage1/mean", "a/raw"} <= names
    clash = compose({"": FeatureFunction(lambda _, x: {"a/raw": x}, dict), "a": raw})
    with pytest.raises(ValueError, match="two encoders give a feature called 'a/raw'"):
        clash({}, images)
