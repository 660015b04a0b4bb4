"""One block of distances: what is sure of it in the arithmetic at hand, and what is not."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from drifting_jax.distributed import replicated

NO_COLUMN = -1

Array = Any


class Arithmetic(NamedTuple):
    """How a block is computed.

    Fields: xp, numpy or jax.numpy; dtype of the products; rows of a block at most; multiply, from
    [r,d] and [c,d] to [r,c]; smallest, from [r,c] and a count to the columns [r,count] of them.
    """

    xp: ModuleType
    dtype: type
    rows: int
    multiply: Callable[[Array, Array], Array]
    smallest: Callable[[Array, int], Array]


HOST = Arithmetic(
    np,
    np.float64,
    1024,
    lambda a, b: a @ b.T,
    lambda values, count: np.argpartition(values, count - 1, axis=1)[:, :count],
)
DEVICES = Arithmetic(
    jnp,
    np.float32,
    4096,
    partial(jnp.einsum, "rd,cd->rc", precision=jax.lax.Precision.HIGHEST),
    lambda values, count: jax.lax.top_k(-values, count)[1],
)


@partial(jax.jit, static_argnums=(0, 1))
def on_devices(
    step: Callable[..., tuple[Array, ...]], mesh: Mesh | None, *arrays: jax.Array
) -> tuple[jax.Array, ...]:
    """A step whose results every process can read."""
    results = step(DEVICES, *arrays)
    return results if mesh is None else jax.lax.with_sharding_constraint(results, replicated(mesh))


def closer(
    arithmetic: Arithmetic,
    a: Array,
    own: Array,
    b: Array,
    numbers: Array,
    best: Array,
    best_numbers: Array,
) -> tuple[Array, Array]:
    """The nearest so far, of bounds [r,count] and numbers in b [r,count], with a block of b [c,d]
    seen too, of which these are the numbers [c]; `own` [r] is the number that each may not have."""
    xp = arithmetic.xp
    squared, slack = _squared(arithmetic, a, b)
    lower = squared - slack
    # Overflow makes no number: such a pair may be as near as any.
    lower = xp.where(xp.isnan(lower), -xp.inf, lower)
    allowed = (numbers != NO_COLUMN)[None] & (numbers[None] != own[:, None])
    lower = xp.where(allowed, lower, xp.inf)
    near = arithmetic.smallest(lower, min(best.shape[1], lower.shape[1]))
    lower = xp.take_along_axis(lower, near, axis=1)
    both = xp.concatenate([best, lower], axis=1)
    both_numbers = xp.where(lower < xp.inf, numbers[near], NO_COLUMN)
    both_numbers = xp.concatenate([best_numbers, both_numbers], axis=1)
    kept = arithmetic.smallest(both, best.shape[1])
    return xp.take_along_axis(both, kept, axis=1), xp.take_along_axis(both_numbers, kept, axis=1)


def compare(
    arithmetic: Arithmetic,
    a: Array,
    squared_a: Array,
    real_a: Array,
    b: Array,
    squared_b: Array,
    real_b: Array,
) -> tuple[Array, Array, Array, Array]:
    """`Memberships` of blocks [r,d] and [c,d] by the pairs that are sure, and those [r,c] that are
    not; rows that only fill a block up, which are not real, are no pairs."""
    squared, slack = _squared(arithmetic, a, b)
    gap_a, gap_b = squared - squared_a[:, None], squared - squared_b[None]
    pairs = real_a[:, None] & real_b[None]
    # No comparison holds of what overflow left: such a pair is not sure.
    sure = pairs & (abs(gap_a) > slack) & (abs(gap_b) > slack)
    in_a, in_b = sure & (gap_a < 0), sure & (gap_b < 0)
    return in_a.sum(axis=1), in_a.any(axis=0), in_b.any(axis=1), pairs & ~sure


def _squared(arithmetic: Arithmetic, a: Array, b: Array) -> tuple[Array, Array]:
    """Squared distances [r,c] between a [r,d] and b [c,d], and what they may be off by [r,c]."""
    info, d = np.finfo(arithmetic.dtype), a.shape[1]
    norms = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1)[None]
    # Rounding errors are of either sign, so that their sum grows as √d (Higham and Mary 2019), and
    # stays well below eight times that. The last term is for squares too small for the dtype.
    slack = float((8 * np.sqrt(d) + 16) * info.eps) * norms + float(4 * d * info.tiny)
    return norms - 2 * arithmetic.multiply(a, b), slack
