"""A small multilayer perceptron: the generator of the two-dimensional toys (5.1)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from drifting_jax.models import layers


class MLP(nn.Module):
    """Maps noise [b, n] to points [b, out_features] in one pass.

    Unlike that of the image generator, the output layer does not start at zero: the first points
    are spread out, so that one can see the first steps move them.

    Attributes:
      widths: widths of the hidden layers, each followed by SiLU.
      out_features: coordinates of a point.
      dtype: compute dtype; parameters are always float32.
    """

    widths: tuple[int, ...] = (256, 256, 256)
    out_features: int = 2
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, noise: jax.Array) -> jax.Array:
        """Generates points.

        Args:
          noise: [b, n] float32, standard normal.

        Returns:
          [b, out_features] float32.

        Raises:
          ValueError: noise is not of rank 2.
        """
        if noise.ndim != 2:
            raise ValueError(f"noise must be [b, n], found shape {noise.shape}")
        x = noise
        for i, width in enumerate(self.widths):
            x = nn.silu(layers.linear(width, dtype=self.dtype, name=f"hidden_{i}")(x))  # [b, width]
        x = layers.linear(self.out_features, dtype=self.dtype, name="output")(x)
        return x.astype(jnp.float32)
