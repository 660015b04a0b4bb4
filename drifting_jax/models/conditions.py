"""Conditions that are vectors: a small network encodes them for adaLN and in-context tokens."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from drifting_jax.models import layers

_NORMAL_02 = nn.initializers.normal(0.02)


class VectorCondition(nn.Module):
    """Encodes one array for each sample: [b, ...] -> [b, width].

    The entries of an array are taken as one vector. Layers of `width` channels with SiLU between
    them end in an RMSNorm, so that the condition has the size that adaLN expects.

    Attributes:
      width: channels of the condition and of each layer.
      depth: layers, at least one.
      dtype: compute dtype; parameters are always float32.
    """

    width: int
    depth: int = 2
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, arrays: jax.Array) -> jax.Array:
        x = arrays.reshape(arrays.shape[0], -1).astype(self.dtype)
        for i in range(self.depth):
            x = nn.silu(x) if i else x
            x = layers.linear(self.width, dtype=self.dtype, name=f"layer_{i}")(x)
        return layers.token_norm(rms=True, affine=True, dtype=self.dtype, name="norm")(x)


class ContextTokens(nn.Module):
    """In-context tokens of a condition (A.2): [b, condition_width] -> [b, count, width]."""

    count: int
    width: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, condition: jax.Array) -> jax.Array:
        embedding = self.param("embedding", _NORMAL_02, (self.count, self.width))
        projected = layers.linear(self.width, dtype=self.dtype, name="projection")(condition)
        return projected[:, None] + embedding[None].astype(self.dtype)
