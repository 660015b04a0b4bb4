"""Blocks of the generator's transformer (A.2): attention, per-token network, adaLN-zero."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from drifting_jax.models import layers


@jax.custom_vjp
def attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Softmax attention of queries that are scaled already: three [b, t, heads, d] -> same.

    The backward pass computes the weights [b, heads, t, t] again: to keep them for all blocks takes
    more memory, and on a GPU more time, than all other activations.
    """
    return jnp.einsum("bnqk,bknd->bqnd", _attention_weights(q, k), v)


def _attention_weights(q: jax.Array, k: jax.Array) -> jax.Array:
    return nn.softmax(jnp.einsum("bqnd,bknd->bnqk", q, k), axis=-1)


def _attention_forward(q: jax.Array, k: jax.Array, v: jax.Array):
    y = attention(q, k, v)
    return y, (q, k, v, y)


def _attention_backward(kept: tuple[jax.Array, ...], g: jax.Array):
    q, k, v, y = kept
    weights = _attention_weights(q, k)
    at_least_float32 = jnp.promote_types(q.dtype, jnp.float32)
    to_float = functools.partial(jnp.einsum, preferred_element_type=at_least_float32)
    through_weights = to_float("bqnd,bknd->bnqk", g, v)
    # The sum over a row of weights * through_weights, without reading either.
    row_sums = to_float("bqnd,bqnd->bnq", g, y)[..., None]
    through_logits = (weights * (through_weights - row_sums)).astype(q.dtype)
    return (
        jnp.einsum("bnqk,bknd->bqnd", through_logits, k),
        jnp.einsum("bnqk,bqnd->bknd", through_logits, q),
        jnp.einsum("bnqk,bqnd->bknd", weights, g),
    )


attention.defvjp(_attention_forward, _attention_backward)


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
        y = attention(q * head_width**-0.5, k, v).reshape(b, t, width).astype(self.dtype)
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
