"""The frozen networks of a generator's run: the autoencoder, a second encoder, and the VAE."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from drifting_jax import build, distributed
from drifting_jax.config import ConfigDict
from drifting_jax.data.sources import Source
from drifting_jax.errors import UserError
from drifting_jax.models.convnext import ConvNeXtV2
from drifting_jax.models.dinov2 import DINOv2
from drifting_jax.models.resnet import ResNet
from drifting_jax.models.vae import VAE
from drifting_jax.weights.networks import Network, load_network
from drifting_jax.weights.shapes import param_shapes

PyTree = Any

_EXTRA_SIDE = 224  # pixels that encoders of pixels are shown, as they were trained


def check_extra(config: ConfigDict, source: Source) -> None:
    """Makes sure that a second encoder can be used, before the first one is trained."""
    if config.extra_encoder.kind == "none":
        return
    for section in ("extra_encoder", "vae"):
        if (section == "extra_encoder" or config.data.latent) and not config[section].path:
            raise UserError(f"config.{section}.path must say where its weights are")
    if not config.data.latent and source.image_shape[-1] != 3:
        raise UserError(
            f"config.extra_encoder sees colour images; {config.data.source} has "
            f"{source.image_shape[-1]} channel(s)"
        )


def load(
    config: ConfigDict, encoder: PyTree, mesh: Mesh
) -> tuple[PyTree, dict[str, Any], Network | None]:
    """Variables of all frozen networks, the networks besides the autoencoder, and the VAE."""
    variables, networks = {"": {"params": encoder}}, {"extra": None, "vae": None}
    kind, latent = config.extra_encoder.kind, config.data.latent

    def placed(tree: PyTree) -> PyTree:
        return jax.device_put(tree, distributed.sharding_for_tree(tree, mesh, config.mesh.rules))

    vae = load_network(config.vae.path, kind="vae") if latent and config.vae.path else None
    if vae is not None:
        vae = dataclasses.replace(vae, variables=placed(vae.variables))
    if kind == "none":
        return variables, networks, vae
    extra = load_network(config.extra_encoder.path, kind=kind)
    networks["extra"], networks["vae"] = as_frozen(config, extra.model, vae.model if vae else None)
    variables[kind] = placed(extra.variables)
    if vae is not None:
        variables[kind] = {"vae": vae.variables, "encoder": variables[kind]}
    return variables, networks, vae


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
    """Shapes of what `load` returns first, nothing read."""

    def of(model: nn.Module) -> PyTree:
        return {"params": param_shapes(model)}

    found: dict[str, PyTree] = {"": of(build.make_encoder(config, source))}
    if extra is not None:
        both = {"vae": of(vae), "encoder": of(extra)} if vae else of(extra)
        found[config.extra_encoder.kind] = both
    return found
