"""Softmax attention in one kernel of a GPU, which keeps the weights [b, heads, t, t] on the chip.

The kernel is JAX's own (`jax.experimental.pallas.ops.gpu.attention`, after FlashAttention,
2205.14135 and 2307.08691). Here it gets what it lacks: any number of tokens, and a batch that is
divided among devices. Products of float32 factors are TF32 as elsewhere on a GPU; sums, softmax and
what is kept for the backward pass are float32.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.custom_partitioning import custom_partitioning

FEWEST_TOKENS = 64  # a guess: with fewer, little is written to memory
_HEAD_WIDTHS = (16, 128)  # Triton multiplies at least 16 columns; more than 128 need another tile
_TILE = 32
# A tile of the forward pass where it divides the tokens; wider heads need more memory than an RTX
# 4090 shares on the chip.
_LARGE_TILE, _LARGE_TILE_WIDTH = 64, 64


def fits(q: jax.Array) -> bool:
    """Whether the kernel takes queries [b, t, heads, d] and is of use for them."""
    _, t, _, d = q.shape
    is_known = q.dtype in (jnp.float32, jnp.bfloat16, jnp.float16)
    return is_known and t >= FEWEST_TOKENS and _HEAD_WIDTHS[0] <= d <= _HEAD_WIDTHS[1]


def forward(
    q: jax.Array, k: jax.Array, v: jax.Array, *, interpret: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Attention of queries that are scaled already.

    Args:
      q, k, v: [b, t, heads, d] of a type that `fits`.
      interpret: run the kernel's program without a GPU, slowly.

    Returns:
      [b, t, heads, d] in the dtype of q, and log2 of the sums of the softmax [b, heads, t'] float32
      for `pull_back`; t' is t rounded up to whole tiles.
    """
    found = _divided(_forward, "b t h d, b t h d, b t h d -> b t h d, b h s", interpret)
    return found(q, k, v)


def pull_back(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    y: jax.Array,
    log_sums: jax.Array,
    g: jax.Array,
    *,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients of q, k and v, given `forward` and the gradient g [b, t, heads, d] of its y."""
    samples = "b t h d, b t h d, b t h d, b t h d, b h s, b t h d"
    found = _divided(_pull_back, f"{samples} -> b t h d, b t h d, b t h d", interpret)
    return found(q, k, v, y, log_sums, g)


def no_log_sums(q: jax.Array) -> jax.Array:
    """Zeros in the shape of what `forward` keeps for `pull_back`."""
    b, t, heads, _ = q.shape
    return jnp.zeros((b, heads, _whole(t)), jnp.float32)


def _forward(interpret: bool, q: jax.Array, k: jax.Array, v: jax.Array):
    t = q.shape[1]
    arguments = _arguments(q, interpret)
    y, kept = _kernel().mha.fwd(*(_padded(x) for x in (q, k, v)), _real(q), *arguments)
    return y[:, :t], kept[-1]


def _pull_back(interpret: bool, *arrays: jax.Array):
    q, k, v, y, log_sums, g = arrays
    kept = (*(_padded(x) for x in (q, k, v)), _real(q), _padded(y), log_sums)
    t = q.shape[1]
    found = _kernel().mha.bwd(*_arguments(q, interpret), kept, _padded(g))
    return tuple(x[:, :t] for x in found[:3])


def _kernel() -> Any:
    """JAX's module of the kernel. Its import warns from jax 0.12 on: a later JAX may lack it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from jax.experimental.pallas.ops.gpu import attention

    return attention


def _arguments(q: jax.Array, interpret: bool) -> tuple[Any, ...]:
    """What `mha` takes after the arrays."""
    is_large = _whole(q.shape[1]) % _LARGE_TILE == 0 and q.shape[-1] <= _LARGE_TILE_WIDTH
    tile = _LARGE_TILE if is_large else _TILE
    sizes = _kernel().BlockSizes(tile, tile, *(_TILE,) * 4)
    scale, causal, warps, stages, grid, debug, residuals = 1.0, False, None, 2, None, False, False
    return scale, causal, sizes, "triton", warps, stages, grid, interpret, debug, residuals


def _whole(t: int) -> int:
    return -(-t // _TILE) * _TILE


def _padded(x: jax.Array) -> jax.Array:
    """[b, t, heads, d] -> [b, t', heads, d] with zeros at the end."""
    missing = _whole(x.shape[1]) - x.shape[1]
    return jnp.pad(x, ((0, 0), (0, missing), (0, 0), (0, 0))) if missing else x


def _real(q: jax.Array) -> jax.Array | None:
    """[b, t'] int32: 1 for tokens, 0 for what was added, which they do not see; None without."""
    b, t = q.shape[:2]
    if _whole(t) == t:
        return None
    return jnp.broadcast_to((jnp.arange(_whole(t)) < t).astype(jnp.int32), (b, _whole(t)))


@functools.cache
def _divided(function: Callable, rule: str, interpret: bool) -> Callable:
    """Returns a function that each device computes for its own samples, the axis b."""
    local = functools.partial(function, interpret)
    divided = custom_partitioning(local)

    def partition(mesh, arguments, results):
        def shardings(shapes):
            return jax.tree.map(lambda x: x.sharding, shapes)

        return mesh, local, shardings(results), shardings(arguments)

    divided.def_partition(
        partition=partition,
        sharding_rule=rule,
        need_replication_factors=tuple(x for x in "thds" if f" {x}" in rule),
    )
    return divided
