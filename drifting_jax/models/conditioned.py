"""Networks whose condition is an array: noise and conditions to samples, in one evaluation.

Each maps noise [c, g, ...] and conditions [c, ...] of c rows to g samples [c, g, ...] of each. The
condition is encoded once for all samples of a row.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from drifting_jax.models import layers
from drifting_jax.models.conditions import VectorCondition
from drifting_jax.models.transformer import FeedForward, Modulation, modulate

_FLOAT = jnp.float32


class _MLPBlock(nn.Module):
    """Residual block with adaLN-zero: [c, g, width] and [c, condition_width] -> [c, g, width]."""

    mlp_ratio: float

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array) -> jax.Array:
        shift, scale, gate = Modulation(x.shape[-1], 3, _FLOAT, name="modulation")(condition)
        y = modulate(unit_norm("norm")(x), shift, scale)
        return x + gate * FeedForward(self.mlp_ratio, True, _FLOAT, name="feed_forward")(y)


class ConditionedMLP(nn.Module):
    """An MLP of whole samples: residual blocks with adaLN-zero.

    The output layer does not start at zero, so that the first samples of a condition differ.

    Attributes:
      width: channels of each layer.
      depth: blocks.
      mlp_ratio: width of a block's feed-forward network over `width`.
      condition_width: channels of the encoded condition.
      condition_depth: layers of its network.
    """

    width: int = 256
    depth: int = 2
    mlp_ratio: float = 2.0
    condition_width: int = 256
    condition_depth: int = 2

    @nn.compact
    def __call__(self, noise: jax.Array, conditions: jax.Array) -> jax.Array:
        """noise [c, g, ...] and conditions [c, ...] -> [c, g, ...] float32."""
        check_rows(noise, conditions)
        condition = VectorCondition(self.condition_width, self.condition_depth, name="condition")(
            conditions
        )  # [c, condition_width]
        entries = noise.reshape(*noise.shape[:2], -1)
        x = layers.linear(self.width, dtype=_FLOAT, name="input")(entries)  # [c, g, width]
        for i in range(self.depth):
            x = _MLPBlock(self.mlp_ratio, name=f"block_{i}")(x, condition)
        shift, scale = Modulation(self.width, 2, _FLOAT, name="final_modulation")(condition)
        x = modulate(unit_norm("final_norm")(x), shift, scale)
        output = layers.linear(entries.shape[-1], dtype=_FLOAT, name="output")
        return output(x).reshape(noise.shape)


class ConditionedGenerator(nn.Module):
    """A generator of images (`DiT`, `UNet`) whose condition is an array, not a class, styles and α.

    The encoded array steers every block (adaLN); a `DiT` also makes its in-context tokens of it.
    The output of a new network is zero.

    Attributes:
      generator: the network; its `condition_width` is `width`.
      width: channels of the encoded condition.
      depth: layers of its network.
      as_map: conditions are maps [c, h', w', e] whose sides divide those of the image. They are
        also enlarged to its size and put beside the noise, as e further channels.
    """

    generator: nn.Module
    width: int
    depth: int = 2
    as_map: bool = False

    @nn.compact
    def __call__(self, noise: jax.Array, conditions: jax.Array) -> jax.Array:
        """noise [c, g, h, w, d] and conditions [c, ...] -> images [c, g, h, w, d] float32."""
        check_rows(noise, conditions)
        c, g, *of_image = noise.shape
        condition = VectorCondition(self.width, self.depth, name="condition")(conditions)
        inputs = noise.reshape(c * g, *of_image)
        if self.as_map:
            maps = enlarged(conditions, of_image[0], of_image[1])  # [c, h, w, e]
            inputs = jnp.concatenate([inputs, jnp.repeat(maps, g, axis=0)], axis=-1)
        images = self.generator(inputs, jnp.repeat(condition, g, axis=0))  # [c * g, h, w, d]
        return images.reshape(noise.shape)


def enlarged(maps: jax.Array, height: int, width: int) -> jax.Array:
    """Maps [c, h', w', e] with each entry repeated, [c, height, width, e].

    Raises:
      ValueError: they are no maps, or their sides do not divide the height and the width.
    """
    if maps.ndim != 4 or height % maps.shape[1] or width % maps.shape[2]:
        raise ValueError(
            f"expected maps [h, w, channels] whose sides divide {height}x{width}; found "
            f"{list(maps.shape[1:])}"
        )
    return maps.repeat(height // maps.shape[1], axis=1).repeat(width // maps.shape[2], axis=2)


def unit_norm(name: str) -> nn.Module:
    """RMSNorm without parameters."""
    return layers.token_norm(rms=True, affine=False, dtype=_FLOAT, name=name)


def check_rows(noise: jax.Array, conditions: jax.Array) -> None:
    """Raises ValueError unless there is one condition for each row of noise."""
    if noise.ndim < 3 or conditions.ndim < 2 or len(noise) != len(conditions):
        raise ValueError(
            "expected noise [c, g, ...] and conditions [c, ...]; found "
            f"{noise.shape} and {conditions.shape}"
        )
