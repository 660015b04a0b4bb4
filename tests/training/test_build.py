"""From configs to networks and features."""

from types import MappingProxyType, SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drifting_jax.config import base_config, resolve
from drifting_jax.errors import UserError
from drifting_jax.method.fields.table import drift_names
from drifting_jax.models.convnext import ConvNeXtV2
from drifting_jax.models.resnet_mae import ResNetMAE
from drifting_jax.models.vae import VAE
from drifting_jax.training import build, frozen
from drifting_jax.training.memory_plan import MemoryPlan
from drifting_jax.weights.shapes import param_shapes

GREY = SimpleNamespace(image_shape=(8, 8, 1), num_classes=3)
LATENT = SimpleNamespace(image_shape=(32, 32, 4), num_classes=1000)


def config(**changes):
    found = base_config("generator")
    small = {"encoder.width": 4, "encoder.groups": 2, "features.patch_sizes": (2,)}
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    found.update_from_flattened_dict(small | changes)
    return resolve(found)


def shapes(found, source, *, extras=MappingProxyType({}), vae=None):
    """Shapes of all features; nothing is computed."""
    samples = jax.ShapeDtypeStruct((2, *source.image_shape), jnp.float32)
    variables = frozen.variables_shapes(found, source, extras, vae)
    function = build.make_feature_function(found, source, extras=extras, vae=vae)
    return {name: x.shape for name, x in jax.eval_shape(function, variables, samples).items()}


def test_features_that_can_be_left_out():
    every = shapes(config(), GREY)
    assert every["raw"] == (2, 1, 64) and every["input/rms"] == (2, 1, 1)
    assert every["stage2"] == (2, 16, 8) and every["stage1/std_2x2"] == (2, 16, 4)
    fewer = shapes(
        config(features__patch_sizes=(), features__input_rms=False, features__raw=False), GREY
    )
    assert set(every) - set(fewer) == {n for n in every if "2x2" in n} | {"raw", "input/rms"}
    assert set(every) - set(shapes(config(features__raw=False), GREY)) == {"raw"}


def test_the_raw_sample_weighs_what_the_config_says():
    def weights(**changes):
        plan, names = MemoryPlan(1, "no"), ("stage1", "stage1/mean", "raw")
        return build.generator_step_config(config(**changes), plan, names).feature_weights

    assert weights(features__raw_weight=0.25) == (("raw", 0.25),)
    assert weights() == ()


@pytest.mark.parametrize("kind", ["convnext", "resnet", "dinov2"])
def test_encoders_of_pixels_see_latents_through_the_decoder(kind):
    found = config(extra_encoder__kind=kind, data__latent=True)
    extras, vae = frozen.expected_networks(found)
    assert isinstance(vae, VAE)
    features = shapes(found, LATENT, extras=extras, vae=vae)
    alone = shapes(config(), LATENT)
    assert alone.items() <= features.items()
    assert all(name.startswith(f"{kind}/") for name in features.keys() - alone.keys())
    expected = {"convnext": ("stage4", (2, 49, 1024)), "resnet": ("stage4", (2, 49, 2048)),
                "dinov2": ("final", (2, 256, 1024))}[kind]  # fmt: skip
    assert features[f"{kind}/{expected[0]}"] == expected[1]


def test_kinds_of_networks_are_checked_against_their_tables():
    found = config()
    with found.unlocked():
        found.model.kind = "gan"
    with pytest.raises(
        UserError, match=r"config\.model\.kind must be one of 'dit', 'unet'; found 'gan'"
    ):
        build.check_choices(found)
    found = config()
    found.extra_encoder.kind = "vae"  # a network, but no encoder
    message = r"config\.extra_encoder\.kind must be one of 'none', 'convnext', .*; found 'vae'"
    with pytest.raises(UserError, match=message):
        build.check_models(found, GREY)
    oblong = SimpleNamespace(image_shape=(8, 6, 1), num_classes=3)
    with pytest.raises(UserError, match="makes square images; found 8x6"):
        build.make_generator(config(), oblong)


def test_no_other_network_is_none():
    assert frozen.expected_networks(config()) == ({}, None)


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        ResNetMAE(in_channels=3, width=8, num_classes=3, blocks=(1, 1), groups=2),
        ConvNeXtV2(depths=(1, 1), widths=(8, 16), image_size=32),
    ],
    ids=["autoencoder", "convnext"],
)
def test_kernels_in_the_dtype_of_their_layer_give_the_same_bits(model):
    """The layer would round them itself; the gradients are the same too."""
    model = model.clone(dtype=jnp.bfloat16)
    images = jax.random.uniform(jax.random.key(0), (2, 32, 32, 3), minval=-1)
    keys = iter(jax.random.split(jax.random.key(1), 1000))
    params = jax.tree.map(
        lambda x: 0.2 * jax.random.normal(next(keys), x.shape), param_shapes(model)
    )
    cast = frozen.as_computed(params, jnp.bfloat16)
    kernels = [x for x in jax.tree.leaves(cast) if x.dtype == jnp.bfloat16]
    assert 0 < len(kernels) < len(jax.tree.leaves(cast))

    @jax.jit
    def features(params, images):
        maps = model.apply({"params": params}, images, method=type(model).feature_maps)
        return sum(jnp.sum(x.astype(jnp.float32) ** 2) for x in maps.values()), maps

    for a, b in zip(
        jax.tree.leaves(jax.value_and_grad(features, 1, has_aux=True)(params, images)),
        jax.tree.leaves(jax.value_and_grad(features, 1, has_aux=True)(cast, images)),
        strict=True,
    ):
        np.testing.assert_array_equal(a.astype(jnp.float32), b.astype(jnp.float32))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"drift__field": "w_flow", "drift__combine": "separate"},
            "'w_flow' does not read combine",
        ),
        ({"drift__field": "energy", "drift__annealed": True}, "does not read annealed"),
        (
            {"drift__negatives": "two_fold", "train__generated_per_label": 15},
            r"config.train.generated_per_label must be even .* found 15",
        ),
        ({"drift__lookahead_stride": 0.5}, "lookahead_stride needs lookahead"),
        (
            {"drift__field": "sliced", "drift__negatives": "stale"},
            "takes negatives of own; found 'stale'",
        ),
    ],
)
def test_options_of_a_field_that_do_not_go_together_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        build.check_choices(config(**changes))


def test_a_field_without_temperatures_has_one_drift():
    names = [
        drift_names(build.drift_options(config(drift__field=name))) for name in ("energy", "w_flow")
    ]
    assert names == [("1",), ("0.02", "0.05", "0.2")]
