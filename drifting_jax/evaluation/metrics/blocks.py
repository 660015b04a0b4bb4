"""One block of distances: which comparisons are certain despite rounding, and which are not."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from drifting_jax.distributed.meshes import BATCH_AXES

NO_COLUMN = -1

Array = Any


class Arithmetic(NamedTuple):
    """How a block is computed.

    Fields: xp, numpy or jax.numpy; dtype, of the products; multiply, from [r,d] and [c,d] to [r,c];
    smallest, from [r,c] and a count to the columns [r,count] of the smallest values.
    """

    xp: ModuleType
    dtype: type
    multiply: Callable[[Array, Array], Array]
    smallest: Callable[[Array, int], Array]


HOST = Arithmetic(
    np,
    np.float64,
    lambda a, b: a @ b.T,
    lambda values, count: np.argpartition(values, count - 1, axis=1)[:, :count],
)
DEVICES = Arithmetic(
    jnp,
    np.float32,
    partial(jnp.einsum, "rd,cd->rc", precision=jax.lax.Precision.HIGHEST),
    lambda values, count: jax.lax.top_k(-values, count)[1],
)


@partial(jax.jit, static_argnums=(0, 1))
def on_devices(
    step: Callable[..., Array], mesh: Mesh | None, left: tuple, right: tuple
) -> tuple[jax.Array, ...]:
    """Runs a step on the devices: each takes its rows of the left arrays and all of the right ones.

    The split is explicit because the compiler would gather all distances for a sort.
    """
    step = partial(step, DEVICES)
    if mesh is not None:
        rows = P(BATCH_AXES)
        step = jax.shard_map(step, mesh=mesh, in_specs=(rows, P()), out_specs=rows)
    return step(left, right)


def closer(
    arithmetic: Arithmetic,
    left: tuple[Array, Array, Array, Array],
    right: tuple[Array, Array],
) -> tuple[Array, Array]:
    """Updates the nearest points of b with one more block of b.

    Args:
      arithmetic: of the arrays.
      left: points of a [r,d]; for each the index in b [r] that it may not have; lower bounds of the
        squared distances so far [r,count], and their indices in b [r,count].
      right: points of b [c,d] and their indices [c], `NO_COLUMN` at rows of padding.

    Returns:
      The new lower bounds and indices.
    """
    xp = arithmetic.xp
    (a, own, best, best_numbers), (b, numbers) = left, right
    squared, slack = _squared(arithmetic, a, b)
    lower = squared - slack
    # Overflow gives NaN: such a pair may be as near as any.
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
    left: tuple[Array, Array, Array],
    right: tuple[Array, Array, Array],
) -> tuple[Array, Array, Array, Array]:
    """Finds which points of a block lie in whose balls.

    Args:
      arithmetic: of the arrays.
      left: points of a [r,d]; squared radii [r] of their balls; false [r] at rows of padding.
      right: the same of b: [c,d], [c] and [c].

    Returns:
      Counted over the pairs that are certain: points of b in each ball of a [r]; whether each of b
      lies in a ball of a [1,c], over the rows of one device; whether each of a lies in a ball of b
      [r]. Then the pairs [r,c] that are not certain.
    """
    (a, squared_a, real_a), (b, squared_b, real_b) = left, right
    squared, slack = _squared(arithmetic, a, b)
    gap_a, gap_b = squared - squared_a[:, None], squared - squared_b[None]
    pairs = real_a[:, None] & real_b[None]
    # No comparison with NaN holds, so a pair that overflows is not sure.
    sure = pairs & (abs(gap_a) > slack) & (abs(gap_b) > slack)
    in_a, in_b = sure & (gap_a < 0), sure & (gap_b < 0)
    return in_a.sum(axis=1), in_a.any(axis=0)[None], in_b.any(axis=1), pairs & ~sure


def _squared(arithmetic: Arithmetic, a: Array, b: Array) -> tuple[Array, Array]:
    """Squared distances [r,c] between a [r,d] and b [c,d], and bounds of their errors [r,c]."""
    info, d = np.finfo(arithmetic.dtype), a.shape[1]
    norms = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1)[None]
    # Rounding errors have either sign, so their sum grows as √d (Higham and Mary 2019), and stays
    # well below eight times that. The last term is for squares that underflow.
    slack = float((8 * np.sqrt(d) + 16) * info.eps) * norms + float(4 * d * info.tiny)
    return norms - 2 * arithmetic.multiply(a, b), slack
