"""The frozen networks of a generator's run: the autoencoder, a second encoder, and the VAE."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from drifting_jax.config import ConfigDict
from drifting_jax.data.sources import Source
from drifting_jax.distributed import meshes
from drifting_jax.errors import UserError
from drifting_jax.models.convnext import ConvNeXtV2
from drifting_jax.models.dinov2 import DINOv2
from drifting_jax.models.resnet import ResNet
from drifting_jax.models.resnet_mae import feature_params
from drifting_jax.models.vae import VAE
from drifting_jax.training import build
from drifting_jax.weights.networks import Network, load_network
from drifting_jax.weights.shapes import param_shapes

PyTree = Any

_EXTRA_SIDE = 224  # pixels that encoders of pixels are shown, as they were trained


@dataclasses.dataclass(frozen=True)
class PretrainedNetworks:
    """Networks that were trained elsewhere, on the host: a second encoder and the VAE, or None."""

    extra: Network | None
    vae: Network | None


def load_pretrained(config: ConfigDict, source: Source) -> PretrainedNetworks:
    """Reads them, before anything is trained.

    Raises:
      UserError: one is missing, or does not fit the data.
    """
    kind = config.extra_encoder.kind
    if kind != "none":
        _check_extra(config, source)
    wants_vae = config.data.latent and config.vae.path
    return PretrainedNetworks(
        extra=load_network(config.extra_encoder.path, kind=kind) if kind != "none" else None,
        vae=load_network(config.vae.path, kind="vae") if wants_vae else None,
    )


def _check_extra(config: ConfigDict, source: Source) -> None:
    for section in ("extra_encoder", "vae"):
        if (section == "extra_encoder" or config.data.latent) and not config[section].path:
            raise UserError(f"config.{section}.path must say where its weights are")
    if not config.data.latent and source.image_shape[-1] != 3:
        raise UserError(
            f"config.extra_encoder sees colour images; {config.data.source} has "
            f"{source.image_shape[-1]} channel(s)"
        )


def place(
    config: ConfigDict, encoder: PyTree, given: PretrainedNetworks, mesh: Mesh
) -> tuple[PyTree, dict[str, Any], Network | None]:
    """Puts all frozen networks on the devices.

    Returns:
      The variables of all, the networks besides the autoencoder, and the VAE.
    """
    dtype = jnp.dtype(config.encoder.dtype)
    variables = {"": {"params": as_computed(feature_params(encoder), dtype)}}
    networks = {"extra": None, "vae": None}
    kind, extra, vae = config.extra_encoder.kind, given.extra, given.vae

    def placed(tree: PyTree) -> PyTree:
        return jax.device_put(tree, meshes.sharding_for_tree(tree, mesh, config.mesh.rules))

    if vae is not None:
        vae = dataclasses.replace(vae, variables=placed(vae.variables))
    if extra is None:
        return variables, networks, vae
    networks["extra"], networks["vae"] = as_frozen(config, extra.model, vae.model if vae else None)
    variables[kind] = as_computed(placed(extra.variables), dtype)
    if vae is not None:
        decoder = as_computed(vae.variables, dtype)
        variables[kind] = {"vae": decoder, "encoder": variables[kind]}
    return variables, networks, vae


def as_computed(params: PyTree, dtype: jnp.dtype) -> PyTree:
    """Arrays, or their shapes, with each kernel in the dtype that its layer computes in.

    The layer would round it to that dtype itself: the numbers are the same, and in bfloat16 there
    is half as much to hold, and to gather from other devices. What is not rounded (norms, biases)
    stays as it is.
    """

    def one(path: tuple, leaf: Any) -> Any:
        if path[-1].key != "kernel":
            return leaf
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(leaf.shape, dtype)
        return leaf.astype(dtype)

    return jax.tree_util.tree_map_with_path(one, params)


def published_sizes(config: ConfigDict) -> tuple[nn.Module | None, VAE | None]:
    """The networks of config.extra_encoder and config.vae as published, without their weights."""
    known = {
        "none": lambda: None,
        "convnext": ConvNeXtV2,
        "resnet": ResNet,
        "dinov2": DINOv2,
    }
    return as_frozen(
        config, known[config.extra_encoder.kind](), VAE() if config.data.latent else None
    )


def as_frozen(
    config: ConfigDict, extra: nn.Module | None, vae: VAE | None
) -> tuple[nn.Module | None, VAE | None]:
    """The networks besides the autoencoder as a step uses them: dtype, remat, and what they see."""
    dtype = jnp.dtype(config.encoder.dtype)
    if extra is not None:
        shown = {} if config.extra_encoder.kind == "convnext" else {"image_size": _EXTRA_SIDE}
        extra = extra.clone(dtype=dtype, **shown)
    return extra, None if vae is None else vae.clone(dtype=dtype, remat=True)


def variables_shapes(
    config: ConfigDict, source: Source, extra: nn.Module | None, vae: VAE | None
) -> PyTree:
    """Shapes of what `place` returns first, nothing read."""

    dtype = jnp.dtype(config.encoder.dtype)

    def of(model: nn.Module) -> PyTree:
        return {"params": as_computed(param_shapes(model), dtype)}

    encoder = feature_params(param_shapes(build.make_encoder(config, source)))
    found: dict[str, PyTree] = {"": {"params": as_computed(encoder, dtype)}}
    if extra is not None:
        both = {"vae": of(vae), "encoder": of(extra)} if vae else of(extra)
        found[config.extra_encoder.kind] = both
    return found
