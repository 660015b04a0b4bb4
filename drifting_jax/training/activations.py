"""What the networks of a generator's step keep of a sample: the encoders' maps and activations."""

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from drifting_jax.config import ConfigDict
from drifting_jax.config.stored import with_values
from drifting_jax.config.streams import stream_key
from drifting_jax.data.sources import DataSpec
from drifting_jax.models import generators
from drifting_jax.models.calls import apply, apply_variables
from drifting_jax.models.rematerialisation import POLICIES
from drifting_jax.models.resnet import ResNet
from drifting_jax.models.vae import VAE
from drifting_jax.training import build

PyTree = Any

_FIELDS = ("model.remat", "encoder.remat")


def with_remat(config: ConfigDict, policy: str) -> ConfigDict:
    """Returns the config with a policy for each network whose `remat` is "auto"."""
    sections = {name: name.partition(".")[0] for name in _FIELDS}
    return with_values(
        config, {name: policy for name in _FIELDS if config[sections[name]].remat == "auto"}
    )


def sample_of(spec: DataSpec, count: int = 1) -> jax.ShapeDtypeStruct:
    """Returns the shape of samples as networks see them."""
    return jax.ShapeDtypeStruct((count, *spec.image_shape), jnp.float32)


def map_bytes(
    config: ConfigDict,
    spec: DataSpec,
    variables: PyTree,
    *,
    extras: Mapping[str, nn.Module] = MappingProxyType({}),
    vae: VAE | None = None,
) -> int:
    """Returns the bytes of the encoders' maps of one sample; arguments as in `kept_activations`."""
    function = build.make_feature_function(config, spec, extras=extras, vae=vae)
    return _bytes(jax.eval_shape(function.maps, variables, sample_of(spec)))


def feature_shapes(
    config: ConfigDict,
    spec: DataSpec,
    variables: PyTree,
    *,
    extras: Mapping[str, nn.Module] = MappingProxyType({}),
    vae: VAE | None = None,
) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns {name: [1, t, d]} of the features of one sample; arguments likewise."""
    function = build.make_feature_function(config, spec, extras=extras, vae=vae)
    return jax.eval_shape(function, variables, sample_of(spec))


def kept_activations(
    config: ConfigDict,
    spec: DataSpec,
    params: PyTree,
    variables: PyTree,
    *,
    extras: Mapping[str, nn.Module] = MappingProxyType({}),
    vae: VAE | None = None,
) -> Callable[[str], int]:
    """Returns a function: policy -> bytes of one generated sample, of networks that say "auto".

    It traces the networks; nothing is computed.

    Args:
      config: of a generator.
      spec: of its samples.
      params: shapes of the generator's parameters.
      variables: shapes of the frozen networks' variables.
      extras, vae: the other frozen networks, as in `build.make_feature_function`.
    """

    def generator_bytes(chosen: ConfigDict) -> int:
        model = build.make_generator(chosen, spec)

        def residuals(count: int) -> int:
            key = stream_key(config, "generator_init")
            keys = jax.eval_shape(lambda: jax.random.split(key, count))

            def draw(key: jax.Array) -> tuple[jax.Array, ...]:
                found = generators.draw_inputs(key, model)
                return *found, *generators.dropout_inputs(key, model)

            noise, styles, *dropout = jax.eval_shape(jax.vmap(draw), keys)
            labels = jax.ShapeDtypeStruct((count,), jnp.int32)
            cfg_scale = jax.ShapeDtypeStruct((count,), jnp.float32)

            def pull_back(params: PyTree, *inputs: jax.Array):
                return jax.vjp(lambda params: apply(model, params, *inputs), params)[1]

            inputs = (noise, labels, styles, cfg_scale, *dropout)
            return _bytes(jax.eval_shape(pull_back, params, *inputs))

        return residuals(2) - residuals(1)

    def encoder_bytes(chosen: ConfigDict) -> int:
        functions = build.make_feature_function(chosen, spec, extras=extras, vae=vae)

        return _residual_bytes(functions.maps, variables, spec.image_shape)

    def kept(policy: str) -> int:
        chosen, found = with_remat(config, policy), 0
        if config.model.remat == "auto":
            found += generator_bytes(chosen)
        if config.encoder.remat == "auto":
            found += encoder_bytes(chosen)
        return found

    return kept


def least_of_pixels(
    config: ConfigDict,
    spec: DataSpec,
    variables: PyTree,
    *,
    extras: Mapping[str, nn.Module] = MappingProxyType({}),
    vae: VAE | None = None,
) -> int:
    """Returns an estimate of the bytes that encoders of pixels take of one generated sample.

    It is what they keep with the rematerialisation of the config, or with the strongest for "auto",
    and twice the mean of what one of their blocks computes again. Encoders that have no
    rematerialisation do not count: `memory_plan` was measured with them.

    Args:
      config, spec, variables, extras, vae: as in `kept_activations`.
    """
    total = 0
    for name, model in extras.items():
        if not hasattr(model, "remat"):
            continue
        blocks = model.blocks if isinstance(model, ResNet) else (model.depth,)
        of_model = variables[build.PIXELS]["encoder" if vae else name]
        of_model = of_model[name] if vae else of_model

        def kept(policy: str, model=model, of_model=of_model) -> int:
            maps = functools.partial(
                apply_variables, model.clone(remat=policy), method="feature_maps"
            )
            return _residual_bytes(maps, of_model, (spec.image_shape[0], spec.image_shape[1], 3))

        chosen = POLICIES[-1] if config.encoder.remat == "auto" else config.encoder.remat
        least, most = kept(chosen), kept(POLICIES[0])
        total += least + 2 * (most - least) // sum(blocks)
    return total


def _residual_bytes(maps: Callable, variables: PyTree, shape: tuple[int, ...]) -> int:
    """Bytes that a function (variables, images) keeps of one image until its backward pass."""

    def residuals(count: int) -> int:
        def pull_back(variables: PyTree, images: jax.Array):
            return jax.vjp(lambda images: maps(variables, images), images)[1]

        images = jax.ShapeDtypeStruct((count, *shape), jnp.float32)
        return _bytes(jax.eval_shape(pull_back, variables, images))

    return residuals(2) - residuals(1)


def _bytes(tree: PyTree) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
