"""Shapes of the parameters of any of our networks."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from drifting_jax.models.convnext import ConvNeXtV2
from drifting_jax.models.dinov2 import DINOv2
from drifting_jax.models.dit import DiT
from drifting_jax.models.inception import InceptionV3
from drifting_jax.models.resnet import ResNet
from drifting_jax.models.resnet_mae import ResNetMAE
from drifting_jax.models.vae import VAE

PyTree = Any

_SIDES = {ConvNeXtV2: 224, InceptionV3: 75, ResNet: 32, VAE: 64}  # of small images


def param_shapes(model: nn.Module) -> PyTree:
    """Tree of `jax.ShapeDtypeStruct`s of a network's parameters, nothing computed."""
    inputs = jax.eval_shape(lambda: _inputs(model))
    return jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]


def _inputs(model: nn.Module) -> tuple[jax.Array, ...]:
    """What a network is called with, as small as it may be."""
    if isinstance(model, DiT):
        side, one = model.image_size, jnp.zeros(1)
        styles = jnp.zeros((1, model.num_style_books), jnp.int32)
        return jnp.zeros((1, side, side, model.in_channels)), one.astype(jnp.int32), styles, one
    if isinstance(model, ResNetMAE):
        side = 2 ** (len(model.blocks) - 1)
        pixels = side * model.input_patch_size
        return jnp.zeros((1, pixels, pixels, model.in_channels)), jnp.zeros((1, side, side))
    side = model.patch_size if isinstance(model, DINOv2) else _SIDES[type(model)]
    return (jnp.zeros((1, side, side, 3)),)
