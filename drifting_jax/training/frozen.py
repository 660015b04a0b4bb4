"""The frozen networks of a generator's run: the autoencoder, a second encoder, and the VAE."""

import dataclasses
from typing import Any, NamedTuple, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike

from drifting_jax.config import ConfigDict
from drifting_jax.data.sources import DataSpec
from drifting_jax.distributed import meshes
from drifting_jax.errors import UserError
from drifting_jax.models.resnet_mae import feature_params
from drifting_jax.models.vae import VAE
from drifting_jax.training import build
from drifting_jax.weights.networks import ENCODERS, NETWORKS, Network, load_network, load_vae
from drifting_jax.weights.shapes import param_shapes

PyTree = Any
Model = TypeVar("Model", bound=nn.Module)


@dataclasses.dataclass(frozen=True)
class PretrainedNetworks:
    """Networks that were trained elsewhere, on the host: a second encoder and the VAE, or None."""

    extra: Network[nn.Module] | None
    vae: Network[VAE] | None


class FrozenNetworks(NamedTuple):
    """All frozen networks, on the devices.

    Attributes:
      variables: what the feature function takes first: {"": those of the autoencoder, kind: those
        of `extra`, with a decoder {"vae": …, "encoder": …}}.
      extra: the module of config.extra_encoder, or None.
      decoder: the VAE through which `extra` sees latents, or None.
      vae: the VAE with its float32 variables, for pictures, or None.
    """

    variables: PyTree
    extra: nn.Module | None
    decoder: VAE | None
    vae: Network[VAE] | None


def load_pretrained(config: ConfigDict, spec: DataSpec) -> PretrainedNetworks:
    """Reads the networks of config.extra_encoder and config.vae, before anything is trained.

    Raises:
      UserError: one is missing, or does not fit the data.
    """
    kind = config.extra_encoder.kind
    if kind != "none":
        _check_extra(config, spec)
    wants_vae = config.data.latent and config.vae.path
    return PretrainedNetworks(
        extra=load_network(config.extra_encoder.path, kind=kind) if kind != "none" else None,
        vae=load_vae(config.vae.path) if wants_vae else None,
    )


def _check_extra(config: ConfigDict, spec: DataSpec) -> None:
    for section in ("extra_encoder", "vae"):
        if (section == "extra_encoder" or config.data.latent) and not config[section].path:
            raise UserError(f"config.{section}.path must say where its weights are")
    if not config.data.latent and spec.image_shape[-1] != 3:
        raise UserError(
            f"config.extra_encoder sees colour images; {config.data.source} has "
            f"{spec.image_shape[-1]} channel(s)"
        )


def place_networks(
    config: ConfigDict, encoder: PyTree | None, pretrained: PretrainedNetworks, mesh: Mesh
) -> FrozenNetworks:
    """Puts all frozen networks on the devices.

    Args:
      config: of the run.
      encoder: parameters of the autoencoder, on the devices; None without one.
      pretrained: the other networks, on the host.
      mesh: the devices; config.mesh.rules says how arrays are split over them.
    """
    dtype = jnp.dtype(config.encoder.dtype)

    def placed(network: Network[Model]) -> Network[Model]:
        tree = network.variables
        shardings = meshes.sharding_for_tree(tree, mesh, config.mesh.rules)
        return dataclasses.replace(network, variables=jax.device_put(tree, shardings))

    variables = {}
    if encoder is not None:
        variables[""] = {"params": as_computed(feature_params(encoder), dtype)}
    vae = placed(pretrained.vae) if pretrained.vae else None
    if pretrained.extra is None:
        return FrozenNetworks(variables, None, None, vae)
    extra, decoder = as_frozen(config, pretrained.extra.model, vae.model if vae else None)
    of_extra = as_computed(placed(pretrained.extra).variables, dtype)
    if vae is not None:
        of_extra = {"vae": as_computed(vae.variables, dtype), "encoder": of_extra}
    variables[config.extra_encoder.kind] = of_extra
    return FrozenNetworks(variables, extra, decoder, vae)


def as_computed(params: PyTree, dtype: DTypeLike) -> PyTree:
    """Arrays, or their shapes, with each kernel in the dtype that its layer computes in.

    The layer would round it to that dtype itself: the numbers are the same, and in bfloat16 there
    is half as much to hold and to gather from other devices. Norms and biases, which are not
    rounded, stay as they are.
    """

    def cast(path: tuple, leaf: Any) -> Any:
        if path[-1].key != "kernel":
            return leaf
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(leaf.shape, dtype)
        return leaf.astype(dtype)

    return jax.tree_util.tree_map_with_path(cast, params)


def published_sizes(config: ConfigDict) -> tuple[nn.Module | None, VAE | None]:
    """The networks of config.extra_encoder and config.vae as published, without their weights."""
    kind = config.extra_encoder.kind
    extra = NETWORKS[kind].module() if kind != "none" else None
    return as_frozen(config, extra, VAE() if config.data.latent else None)


def as_frozen(
    config: ConfigDict, extra: nn.Module | None, vae: VAE | None
) -> tuple[nn.Module | None, VAE | None]:
    """The second encoder and the VAE as a step uses them: dtype, image size and remat are set."""
    dtype = jnp.dtype(config.encoder.dtype)
    if extra is not None:
        side = ENCODERS[config.extra_encoder.kind].image_side
        extra = extra.clone(dtype=dtype)
        if side:
            extra = extra.clone(image_size=side)
    return extra, None if vae is None else vae.clone(dtype=dtype, remat=True)


def variables_shapes(
    config: ConfigDict, spec: DataSpec, extra: nn.Module | None, vae: VAE | None
) -> PyTree:
    """Shapes of `FrozenNetworks.variables`; nothing is read or computed."""
    dtype = jnp.dtype(config.encoder.dtype)

    def of(model: nn.Module) -> PyTree:
        return {"params": as_computed(param_shapes(model), dtype)}

    encoder = feature_params(param_shapes(build.make_encoder(config, spec)))
    found: dict[str, PyTree] = {"": {"params": as_computed(encoder, dtype)}}
    if extra is not None:
        both = {"vae": of(vae), "encoder": of(extra)} if vae else of(extra)
        found[config.extra_encoder.kind] = both
    return found
