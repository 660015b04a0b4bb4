"""The frozen networks of a generator's run: the autoencoder, encoders of pixels, and the VAE."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
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
from drifting_jax.training import build, pixel_encoders
from drifting_jax.weights.networks import Network, load_vae
from drifting_jax.weights.shapes import param_shapes

PyTree = Any
Model = TypeVar("Model", bound=nn.Module)


@dataclasses.dataclass(frozen=True)
class PretrainedNetworks:
    """Networks that were trained elsewhere, on the host.

    Attributes:
      extras: {name: encoder of pixels}; see `pixel_encoders.choices`.
      vae: the VAE, or None.
    """

    extras: Mapping[str, Network[nn.Module]]
    vae: Network[VAE] | None


class FrozenNetworks(NamedTuple):
    """All frozen networks, on the devices.

    Attributes:
      variables: what the feature function takes first: {"": those of the autoencoder, "pixels":
        {name: those of each encoder of pixels}, with a decoder {"vae": …, "encoder": {name: …}}}.
      extras: {name: module of each encoder of pixels}.
      decoder: the VAE through which these see latents, or None.
      vae: the VAE with its float32 variables, for pictures, or None.
    """

    variables: PyTree
    extras: Mapping[str, nn.Module]
    decoder: VAE | None
    vae: Network[VAE] | None


def load_pretrained(config: ConfigDict, spec: DataSpec) -> PretrainedNetworks:
    """Reads the encoders of pixels and the VAE of a config, before anything is trained.

    Raises:
      UserError: one is missing, is another network, or does not fit the data.
    """
    choices = pixel_encoders.choices(config)
    _check_choices(config, spec, choices)
    extras = {}
    for choice in choices:
        network = choice.encoder.load(choice.path)
        pixel_encoders.check_shown(config, choice, network.model, network.variables)
        extras[choice.name] = network
    wants_vae = config.data.latent and config.vae.path
    return PretrainedNetworks(extras, load_vae(config.vae.path) if wants_vae else None)


def _check_choices(
    config: ConfigDict, spec: DataSpec, choices: tuple[pixel_encoders.Choice, ...]
) -> None:
    for choice in choices:
        if not choice.path:
            raise UserError(f"config.{choice.path_field} must say where its weights are")
    if choices and config.data.latent and not config.vae.path:
        raise UserError("config.vae.path must say where its weights are")
    if choices and not config.data.latent and spec.image_shape[-1] not in (1, 3):
        raise UserError(
            f"the encoder {choices[0].name} sees colour images, or grey ones as colours: expected "
            f"1 or 3 channels; {config.data.source} has {spec.image_shape[-1]}"
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
    if not pretrained.extras:
        return FrozenNetworks(variables, {}, None, vae)
    modules = {name: network.model for name, network in pretrained.extras.items()}
    extras, decoder = as_frozen(config, modules, vae.model if vae else None)
    of_pixels: PyTree = {
        name: as_computed(placed(network).variables, dtype)
        for name, network in pretrained.extras.items()
    }
    if vae is not None:
        of_pixels = {"vae": as_computed(vae.variables, dtype), "encoder": of_pixels}
    variables[build.PIXELS] = of_pixels
    return FrozenNetworks(variables, extras, decoder, vae)


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


def expected_networks(config: ConfigDict) -> tuple[dict[str, nn.Module], VAE | None]:
    """The encoders of pixels and the VAE of a config, without their weights.

    They have their published sizes, but for an encoder whose weights are on this machine.

    Raises:
      UserError: an encoder's weights are another network, or it does not fit the config.
    """
    modules = {}
    for choice in pixel_encoders.choices(config):
        is_here = choice.path and Path(choice.path).exists()
        module = choice.encoder.load(choice.path).model if is_here else choice.encoder.published()
        if is_here or config.pixel_encoders.image_size:  # published sizes take the usual images
            pixel_encoders.check_shown(config, choice, module, {"params": param_shapes(module)})
        modules[choice.name] = module
    return as_frozen(config, modules, VAE() if config.data.latent else None)


def as_frozen(
    config: ConfigDict, extras: Mapping[str, nn.Module], vae: VAE | None
) -> tuple[dict[str, nn.Module], VAE | None]:
    """The encoders of pixels and the VAE as a step uses them."""
    dtype = jnp.dtype(config.encoder.dtype)
    shown = {
        choice.name: pixel_encoders.as_shown(config, choice, extras[choice.name])
        for choice in pixel_encoders.choices(config)
    }
    return shown, None if vae is None else vae.clone(dtype=dtype, remat=True)


def variables_shapes(
    config: ConfigDict, spec: DataSpec, extras: Mapping[str, nn.Module], vae: VAE | None
) -> PyTree:
    """Shapes of `FrozenNetworks.variables`; nothing is read or computed."""
    dtype = jnp.dtype(config.encoder.dtype)

    def of(model: nn.Module) -> PyTree:
        return {"params": as_computed(param_shapes(model), dtype)}

    found: dict[str, PyTree] = {}
    if config.encoder.kind != "none":
        encoder = feature_params(param_shapes(build.make_encoder(config, spec)))
        found[""] = {"params": as_computed(encoder, dtype)}
    if extras:
        of_pixels = {name: of(model) for name, model in extras.items()}
        found[build.PIXELS] = {"vae": of(vae), "encoder": of_pixels} if vae else of_pixels
    return found
