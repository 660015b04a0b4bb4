"""The table of generator networks: how each is built and which random inputs it takes.

A generator maps (noise [b, ...], labels [b], styles [b, k], cfg_scale [b]) to images [b, h, w, c]
in one pass, and has the fields `num_classes` and `out_channels`. One with a field `dropout` also
takes keys [b] of its dropout masks, in training. To add one, write its module and add it to
`GENERATORS`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from drifting_jax.models.calls import init_params
from drifting_jax.models.dit import DiT
from drifting_jax.models.unet import UNet

PyTree = Any

DEFAULT_KIND = "dit"  # where a config or a file does not name one
_DROPOUT = 2  # folded into a sample's key; 0 and 1 may give the keys of noise and styles


@dataclasses.dataclass(frozen=True)
class GeneratorNetwork:
    """One kind of generator.

    Attributes:
      module: its class.
      build: (section, image_shape, num_classes) -> the module; see `make_generator`.
      draw_inputs: (key, module) -> noise and styles of one sample; see `draw_inputs`.
    """

    module: type[nn.Module]
    build: Callable[[Any, tuple[int, int, int], int], nn.Module]
    draw_inputs: Callable[[jax.Array, Any], tuple[jax.Array, jax.Array]]


def _build_dit(section: Any, image_shape: tuple[int, int, int], num_classes: int) -> DiT:
    return DiT(
        **_common_fields(section, image_shape, num_classes),
        depth=section.depth,
        mlp_ratio=section.mlp_ratio,
        num_context_tokens=section.num_context_tokens,
        scan=section.scan,
    )


def _build_unet(section: Any, image_shape: tuple[int, int, int], num_classes: int) -> UNet:
    if section.scan:
        raise ValueError("model.scan needs blocks that are all alike; those of a unet are not")
    u = section.unet
    return UNet(
        **_common_fields(section, image_shape, num_classes),
        multipliers=tuple(u.multipliers),
        blocks_per_level=u.blocks_per_level,
        attention_sides=tuple(u.attention_sides),
        groups=u.groups,
        dropout=u.dropout,
        condition_width=u.condition_width,
    )


def _common_fields(
    section: Any, image_shape: tuple[int, int, int], num_classes: int
) -> dict[str, Any]:
    height, width, channels = image_shape
    if height != width:
        raise ValueError(f"the generator makes square images; found {height}x{width}")
    return {
        "image_size": height,
        "in_channels": channels,
        "out_channels": channels,
        "patch_size": section.patch_size,
        "width": section.width,
        "num_heads": section.num_heads,
        "num_classes": num_classes,
        "num_style_books": section.num_style_books,
        "styles_per_book": section.styles_per_book,
        "dtype": jnp.dtype(section.dtype),
        "attention_dtype": jnp.dtype(section.attention_dtype),
        "remat": "none" if section.remat == "auto" else section.remat,
    }


def _draw_inputs(key: jax.Array, model: DiT | UNet) -> tuple[jax.Array, jax.Array]:
    noise_key, style_key = jax.random.split(key)
    shape = (model.image_size, model.image_size, model.in_channels)
    noise = jax.random.normal(noise_key, shape)
    styles = jax.random.randint(
        style_key, (model.num_style_books,), 0, max(model.styles_per_book, 1)
    )
    return noise, styles


GENERATORS: dict[str, GeneratorNetwork] = {
    "dit": GeneratorNetwork(DiT, _build_dit, _draw_inputs),
    "unet": GeneratorNetwork(UNet, _build_unet, _draw_inputs),
}


def make_generator(
    section: Any, *, kind: str, image_shape: tuple[int, int, int], num_classes: int
) -> nn.Module:
    """Builds the generator of a kind.

    Args:
      section: an object whose attributes are the fields of a config's `model` section.
      kind: a key of `GENERATORS`.
      image_shape: (h, w, c) of the images or latents that it makes.
      num_classes: labels run from 0 to `num_classes - 1`.

    Raises:
      ValueError: there is no such kind, or it cannot make images of this shape.
    """
    if kind not in GENERATORS:
        raise ValueError(f"kind must be one of {', '.join(GENERATORS)}; found {kind!r}")
    return GENERATORS[kind].build(section, image_shape, num_classes)


def is_generator(model: nn.Module) -> bool:
    """Whether `GENERATORS` lists the class of a network."""
    return any(type(model) is network.module for network in GENERATORS.values())


def kind_of(model: nn.Module) -> str:
    """The key of `GENERATORS` under which the class of a network is listed.

    Raises:
      ValueError: the network is no generator.
    """
    for kind, network in GENERATORS.items():
        if type(model) is network.module:
            return kind
    raise ValueError(
        f"expected a generator, one of {', '.join(GENERATORS)}; found a {type(model).__name__}"
    )


def draw_inputs(key: jax.Array, model: nn.Module) -> tuple[jax.Array, jax.Array]:
    """Draws the random inputs of one sample.

    Args:
      key: typed PRNG key of the sample.
      model: a generator. One that `GENERATORS` does not list has the fields of a `DiT` that its
        inputs depend on.

    Returns:
      Noise float32 and style indices [k] int32, without the batch axis. For `DiT` and `UNet` the
      noise is [h, w, c] standard normal, and each style index is uniform in [0, styles_per_book).
    """
    kind = kind_of(model) if is_generator(model) else DEFAULT_KIND
    return GENERATORS[kind].draw_inputs(key, model)


def dropout_inputs(key: jax.Array, model: nn.Module) -> tuple[jax.Array, ...]:
    """Returns what a generator takes in training alone, after its other inputs.

    Args:
      key: typed PRNG key of the sample, as in `draw_inputs`.
      model: a generator.

    Returns:
      The key of the sample's dropout masks, or nothing for a generator without dropout. The masks
      of a sample are the same wherever it is computed again.
    """
    return (jax.random.fold_in(key, _DROPOUT),) if getattr(model, "dropout", 0) else ()


def init_generator(key: jax.Array, model: nn.Module) -> PyTree:
    """Initial parameters of a generator, float32."""
    noise, styles = draw_inputs(key, model)
    labels, cfg_scale = jnp.zeros(1, jnp.int32), jnp.ones(1)
    return init_params(model, key, noise[None], labels, styles[None], cfg_scale)
