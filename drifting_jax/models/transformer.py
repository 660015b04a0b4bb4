"""Blocks of the generator's transformer (A.2): attention, per-token network, adaLN-zero."""

from __future__ import annotations

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from drifting_jax.models import fused_attention, layers, rematerialisation

KERNELS = ("products", "fused")
_LOGITS_WORTH_A_PART = 2**17  # of a sample: half a MiB in float32


@jax.custom_vjp
def attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Softmax attention of queries that are scaled already: three [b, t, heads, d] -> same.

    The backward pass computes the weights [b, heads, t, t] again: to keep them for all blocks takes
    more memory, and on a GPU more time, than all other activations. A CPU computes one sample at a
    time where the weights of all would not fit its cache.
    """
    return jax.lax.platform_dependent(q, k, v, cpu=_in_parts(_attend), default=_attend)


def _attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))  # [b, heads, t, d]
    return jnp.einsum("bnqk,bnkd->bnqd", _attention_weights(q, k), v).swapaxes(1, 2)


def _attention_weights(q: jax.Array, k: jax.Array) -> jax.Array:
    return nn.softmax(jnp.einsum("bnqd,bnkd->bnqk", q, k), axis=-1)


def _attention_forward(q: jax.Array, k: jax.Array, v: jax.Array):
    y = rematerialisation.kept(attention(q, k, v))
    return y, (q, k, v, y)


def _attention_backward(kept: tuple[jax.Array, ...], g: jax.Array):
    return jax.lax.platform_dependent(*kept, g, cpu=_in_parts(_pull_back), default=_pull_back)


def _pull_back(q: jax.Array, k: jax.Array, v: jax.Array, y: jax.Array, g: jax.Array):
    q, k, v, y, g = (x.swapaxes(1, 2) for x in (q, k, v, y, g))  # [b, heads, t, d]
    weights = _attention_weights(q, k)
    at_least_float32 = jnp.promote_types(q.dtype, jnp.float32)
    to_float = functools.partial(jnp.einsum, preferred_element_type=at_least_float32)
    through_weights = to_float("bnqd,bnkd->bnqk", g, v)
    # The sum over a row of weights * through_weights, without reading either.
    row_sums = to_float("bnqd,bnqd->bnq", g, y)[..., None]
    through_logits = (weights * (through_weights - row_sums)).astype(q.dtype)
    found = (
        jnp.einsum("bnqk,bnkd->bnqd", through_logits, k),
        jnp.einsum("bnqk,bnqd->bnkd", through_logits, q),
        jnp.einsum("bnqk,bnqd->bnkd", weights, g),
    )
    return tuple(x.swapaxes(1, 2) for x in found)


def _in_parts(function: Callable) -> Callable:
    """Returns a function of arrays [b, t, heads, d], computed for some of the b samples in turn."""

    def in_parts(*arrays: jax.Array):
        b, t, heads, _ = arrays[0].shape
        at_once = jax.device_count()  # a part has one sample of each device
        if b % at_once or heads * t * t < _LOGITS_WORTH_A_PART:
            return function(*arrays)
        parts = [x.reshape(at_once, -1, *x.shape[1:]).swapaxes(0, 1) for x in arrays]
        found = jax.lax.map(lambda x: function(*x), parts)
        return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(b, *x.shape[2:]), found)

    return in_parts


attention.defvjp(_attention_forward, _attention_backward)


@jax.custom_vjp
def attention_on_gpu(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """`attention` that is one kernel on a GPU by CUDA, and the same products elsewhere."""
    return _fused_forward(q, k, v)[0]


def _fused_forward(q: jax.Array, k: jax.Array, v: jax.Array):
    def products(q, k, v):
        return attention(q, k, v), fused_attention.no_log_sums(q)

    found = jax.lax.platform_dependent(q, k, v, cuda=fused_attention.forward, default=products)
    y, log_sums = (rematerialisation.kept(x) for x in found)
    return y, (q, k, v, y, log_sums)


def _fused_backward(kept: tuple[jax.Array, ...], g: jax.Array):
    def products(q, k, v, y, _, g):
        return _attention_backward((q, k, v, y), g)

    return jax.lax.platform_dependent(*kept, g, cuda=fused_attention.pull_back, default=products)


attention_on_gpu.defvjp(_fused_forward, _fused_backward)


class SelfAttention(nn.Module):
    """Multi-head self-attention [b, t, width] -> same, with optional QK-norm and RoPE.

    `attention_kernel` is one of `KERNELS`; "fused" is for GPUs that have Triton.
    """

    num_heads: int
    qk_norm: bool
    rms_norm: bool
    dtype: DTypeLike
    attention_dtype: DTypeLike
    attention_kernel: str = "products"
    out_init: Callable[..., jax.Array] = layers.xavier_uniform

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
        is_fused = self.attention_kernel == "fused" and fused_attention.fits(q)
        attend = attention_on_gpu if is_fused else attention
        y = attend(q * head_width**-0.5, k, v).reshape(b, t, width).astype(self.dtype)
        return layers.linear(width, dtype=self.dtype, kernel_init=self.out_init, name="out")(y)


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
    """x [b, ..., width], scaled by 1 + scale and shifted, both [b, 1, ..., width]."""
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
    attention_kernel: str = "products"

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
            self.attention_kernel,
            name="attention",
        )(y, rotation)
        y = modulate(norm(name="feed_forward_norm")(x), shift2, scale2)
        return x + gate2 * FeedForward(
            self.mlp_ratio, self.swiglu, self.dtype, name="feed_forward"
        )(y)
