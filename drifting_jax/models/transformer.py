"""Blocks of the generator's transformer (A.2): attention, per-token network, adaLN-zero."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from drifting_jax.models import layers


class SelfAttention(nn.Module):
    """Multi-head self-attention [b, t, width] -> same, with optional QK-norm and RoPE."""

    num_heads: int
    qk_norm: bool
    rms_norm: bool
    dtype: DTypeLike
    attention_dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array, rotation: tuple[jax.Array, jax.Array] | None) -> jax.Array:
        b, t, width = x.shape
        head_width = width // self.num_heads
        qkv = layers.linear(3 * width, dtype=self.dtype, name="qkv")(x)
        qkv = qkv.reshape(b, t, 3, self.num_heads, head_width)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]  # [b, t, heads, head_width]
        if self.qk_norm:
            q = layers.token_norm(rms=self.rms_norm, affine=True, dtype=self.dtype, name="q_norm")(
                q
            )
            k = layers.token_norm(rms=self.rms_norm, affine=True, dtype=self.dtype, name="k_norm")(
                k
            )
        q, k, v = (a.astype(self.attention_dtype) for a in (q, k, v))
        if rotation is not None:
            q = layers.apply_rotary(q, *rotation)
            k = layers.apply_rotary(k, *rotation)
        logits = jnp.einsum("bqnd,bknd->bnqk", q * head_width**-0.5, k)  # [b, heads, t, t]
        weights = nn.softmax(logits, axis=-1)
        y = jnp.einsum("bnqk,bknd->bqnd", weights, v).reshape(b, t, width).astype(self.dtype)
        return layers.linear(width, dtype=self.dtype, name="out")(y)


class FeedForward(nn.Module):
    """Per-token network [b, t, width] -> same: SwiGLU, or two layers with a GELU between them.

    SwiGLU's hidden width is 2/3 of `mlp_ratio * width`, rounded up to a multiple of 32, so that its
    three matrices hold about as many weights as the two of the GELU network.
    """

    mlp_ratio: float
    swiglu: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        hidden = int(width * self.mlp_ratio)
        if self.swiglu:
            hidden = -(-int(hidden * 2 / 3) // 32) * 32
            # [b, t, hidden]
            gate = layers.linear(hidden, dtype=self.dtype, name="gate")(x)
            up = layers.linear(hidden, dtype=self.dtype, name="up")(x)
            y = nn.silu(gate) * up
        else:
            y = nn.gelu(layers.linear(hidden, dtype=self.dtype, name="up")(x), approximate=False)
        return layers.linear(width, dtype=self.dtype, name="down")(y)


def modulate(x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
    """x [b, t, width], scaled by 1 + scale and shifted, both [b, 1, width]."""
    return x * (1 + scale) + shift


class Modulation(nn.Module):
    """adaLN-zero: condition [b, condition_width] -> `parts` arrays [b, 1, width], 0 at first."""

    width: int
    parts: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, condition: jax.Array) -> list[jax.Array]:
        y = layers.linear(
            self.parts * self.width,
            dtype=self.dtype,
            kernel_init=nn.initializers.zeros,
            name="linear",
        )(nn.silu(condition))
        return jnp.split(y[:, None], self.parts, axis=-1)


class Block(nn.Module):
    """Transformer block with adaLN-zero: attention, then the per-token network.

    Tokens [b, t, width] -> same. The condition [b, condition_width] gives a shift and a scale
    before each of the two, and a gate after it.
    """

    num_heads: int
    mlp_ratio: float
    qk_norm: bool
    swiglu: bool
    rms_norm: bool
    dtype: DTypeLike
    attention_dtype: DTypeLike

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        condition: jax.Array,
        rotation: tuple[jax.Array, jax.Array] | None,
    ) -> jax.Array:
        norm = functools.partial(
            layers.token_norm, rms=self.rms_norm, affine=False, dtype=self.dtype
        )
        shift1, scale1, gate1, shift2, scale2, gate2 = Modulation(
            x.shape[-1], 6, self.dtype, name="modulation"
        )(condition)
        y = modulate(norm(name="attention_norm")(x), shift1, scale1)
        x = x + gate1 * SelfAttention(
            self.num_heads,
            self.qk_norm,
            self.rms_norm,
            self.dtype,
            self.attention_dtype,
            name="attention",
        )(y, rotation)
        y = modulate(norm(name="feed_forward_norm")(x), shift2, scale2)
        return x + gate2 * FeedForward(
            self.mlp_ratio, self.swiglu, self.dtype, name="feed_forward"
        )(y)
