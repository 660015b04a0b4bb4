"""Exact comparisons of distances between sets too large for a matrix of all pairs.

The distances of a block come from ‖x‖² + ‖y‖² − 2 x·y, in float32 on the devices or in float64 on
the host, each with a bound of its rounding error. Where the bound leaves a comparison open,
Σ (x − y)² in float64 decides. So the results depend neither on the arithmetic nor on blocks and
devices, and points that coincide are at distance 0.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from drifting_jax.distributed.meshes import batch_sharding, replicated
from drifting_jax.distributed.transfer import fetch
from drifting_jax.evaluation.metrics import blocks
from drifting_jax.evaluation.metrics.blocks import DEVICES, HOST, NO_COLUMN, Arithmetic, Array
from drifting_jax.evaluation.metrics.rows import row_blocks

# Candidates beyond the neighbours that are asked for, as rounding may change their order.
_SPARE = 8
_NO_ROW = -2


class BlockSizes(NamedTuple):
    """How the work is split. Results do not depend on it.

    Fields: host_rows, device_rows, columns: the most in a block; host_pairs: the most pairs that
    the host computes, as compiling a program for the devices would take longer; many_open: the most
    uncertain pairs in a block for which differences are quicker than products in float64.
    """

    host_rows: int = 1024
    device_rows: int = 4096
    columns: int = 8192
    host_pairs: int = 2**22
    many_open: int = 2**18


DEFAULT_SIZES = BlockSizes()


class Nearest(NamedTuple):
    """indices [n,count] int64 and squared distances [n,count] float64, the nearest first."""

    indices: np.ndarray
    squared: np.ndarray


class Memberships(NamedTuple):
    """Which points lie in which balls, around the points of a [n,d] and of b [m,d].

    Fields: inside_a [n] int64, how many of b lie in the open ball of each of a; b_in_a [m] bool,
    whether each of b lies in a closed ball of a; a_in_b [n] bool, whether each of a lies in a
    closed ball of b.
    """

    inside_a: np.ndarray
    b_in_a: np.ndarray
    a_in_b: np.ndarray


def exact_squared(
    a: np.ndarray, b: np.ndarray, rows: np.ndarray, columns: np.ndarray
) -> np.ndarray:
    """Squared distances [p] float64 of the pairs a[rows], b[columns], by their differences."""
    squared = np.empty(len(rows))
    size = max(1, 2**22 // a.shape[1])
    for first in range(0, len(rows), size):
        part = slice(first, first + size)
        gap = np.asarray(a[rows[part]], np.float64) - np.asarray(b[columns[part]], np.float64)
        squared[part] = np.sum(gap * gap, axis=1)
    return squared


def nearest(
    a: np.ndarray,
    b: np.ndarray,
    count: int,
    *,
    others: bool = False,
    mesh: Mesh | None = None,
    sizes: BlockSizes = DEFAULT_SIZES,
) -> Nearest:
    """The `count` nearest points of b for each of a.

    At equal distances they are in the order of b; if a tie extends beyond `count`, any of its
    points may be left out.

    Args:
      a: [n,d] finite, any float dtype; may lie on disk.
      b: [m,d] likewise.
      count: neighbours, 1 or more and no more than there are.
      others: a and b are one set, and no point is a neighbour of itself.
      mesh: devices that share the rows of a block; without it one device, or the host for few
        pairs. Every process calls with the same sets and gets the whole result.
      sizes: how the work is split.
    """
    pair = _Pair(a, b, mesh, sizes)
    found = Nearest(np.empty((len(a), count), np.int64), np.empty((len(a), count)))
    queue = [(pair.arithmetic, rows) for rows in pair.rows]
    while queue:
        arithmetic, rows = queue.pop()
        candidates, rest = pair.candidates(arithmetic, rows, count + _SPARE, others)
        reached = candidates != NO_COLUMN
        squared = np.full(candidates.shape, np.inf)
        squared[reached] = exact_squared(a, b, rows[np.nonzero(reached)[0]], candidates[reached])
        order = np.lexsort((candidates, squared), axis=1)[:, :count]
        found.indices[rows] = np.take_along_axis(candidates, order, axis=1)
        found.squared[rows] = np.take_along_axis(squared, order, axis=1)
        unsure = rows[found.squared[rows, -1] > np.maximum(rest, 0.0)]
        if arithmetic is DEVICES:
            queue += [(HOST, unsure[part]) for part in _parts(len(unsure), sizes.host_rows)]
    return found


def memberships(
    a: np.ndarray,
    b: np.ndarray,
    squared_a: np.ndarray,
    squared_b: np.ndarray,
    *,
    mesh: Mesh | None = None,
    sizes: BlockSizes = DEFAULT_SIZES,
) -> Memberships:
    """Finds which points of each set lie in balls of the other.

    Args:
      a: [n,d] finite, any float dtype; may lie on disk.
      b: [m,d] likewise.
      squared_a: squared radii [n] float64 of the balls around a.
      squared_b: squared radii [m] of the balls around b.
      mesh, sizes: see `nearest`.
    """
    pair = _Pair(a, b, mesh, sizes)
    found = Memberships(np.zeros(len(a), np.int64), np.zeros(len(b), bool), np.zeros(len(a), bool))
    queue = [(pair.arithmetic, rows, columns) for rows in pair.rows for columns in pair.columns]
    for arithmetic, rows, columns in queue:
        inside_a, b_in_a, a_in_b, unsure = pair.compare(
            arithmetic, rows, columns, squared_a[rows], squared_b[columns]
        )
        i, j = np.nonzero(unsure)
        if arithmetic is DEVICES and len(i) > sizes.many_open:
            queue += [(HOST, rows[part], columns) for part in _parts(len(rows), sizes.host_rows)]
            continue
        i, j = rows[i], columns[j]
        squared = exact_squared(a, b, i, j)
        found.inside_a[rows] += inside_a
        found.b_in_a[columns] |= b_in_a
        found.a_in_b[rows] |= a_in_b
        np.add.at(found.inside_a, i[squared < squared_a[i]], 1)
        found.b_in_a[j[squared <= squared_a[i]]] = True
        found.a_in_b[i[squared <= squared_b[j]]] = True
    return found


class _Pair:
    """Two sets of points, read in blocks that are computed on the host or on the devices."""

    def __init__(self, a: np.ndarray, b: np.ndarray, mesh: Mesh | None, sizes: BlockSizes):
        few = len(a) * len(b) <= sizes.host_pairs
        self.arithmetic = HOST if few and mesh is None else DEVICES
        self._a, self._b, self._mesh = a, b, mesh
        # Moving both sets keeps the distances and reduces cancellation. The centre is float32, so
        # that the difference from float32 features is rounded only once.
        sums = [block.sum(axis=0) for _, block in row_blocks(b)]
        self._centre = (np.sum(sums, axis=0) / len(b)).astype(np.float32)
        devices = 1 if mesh is None else mesh.size
        most = sizes.host_rows if self.arithmetic is HOST else sizes.device_rows
        self.rows = _parts(len(a), most, multiple=devices)
        self.columns = _parts(len(b), sizes.columns)
        # Blocks on the devices all have this shape, so that one program serves all.
        self._shape = _block_size(len(a), sizes.device_rows, devices), len(self.columns[0])

    def candidates(
        self, arithmetic: Arithmetic, rows: np.ndarray, count: int, others: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Points of b [r,count] near these of a, and a lower bound [r] of all other distances.

        The bound is of squared distances. `NO_COLUMN` fills up if there are fewer points.
        """
        left = partial(self._left, arithmetic)
        right = partial(self._right, arithmetic)
        points = left(self._moved(arithmetic, self._a, rows))
        own = left((rows if others else np.full_like(rows, _NO_ROW)).astype(np.int32))
        best = (
            left(np.full((len(rows), count), np.inf, arithmetic.dtype)),
            left(np.full((len(rows), count), NO_COLUMN, np.int32)),
        )
        for columns in self.columns:
            block = (
                right(self._moved(arithmetic, self._b, columns)),
                right(columns.astype(np.int32), fill=NO_COLUMN),
            )
            best = self._run(blocks.closer, arithmetic, (points, own, *best), block)
        bounds, numbers = (each[: len(rows)] for each in fetch(best))
        return numbers.astype(np.int64), bounds.max(axis=1).astype(np.float64)

    def compare(
        self,
        arithmetic: Arithmetic,
        rows: np.ndarray,
        columns: np.ndarray,
        squared_a: np.ndarray,
        squared_b: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """`Memberships` of a block from the certain pairs, and the pairs [r,c] that are not."""
        left = (
            self._moved(arithmetic, self._a, rows),
            _cast(squared_a, arithmetic.dtype),
            np.ones(len(rows), bool),
        )
        right = (
            self._moved(arithmetic, self._b, columns),
            _cast(squared_b, arithmetic.dtype),
            np.ones(len(columns), bool),
        )
        results = self._run(
            blocks.compare,
            arithmetic,
            tuple(self._left(arithmetic, array) for array in left),
            tuple(self._right(arithmetic, array) for array in right),
        )
        inside_a, b_in_a, a_in_b, unsure = fetch(results)
        n, m = len(rows), len(columns)
        return inside_a[:n], b_in_a.any(axis=0)[:m], a_in_b[:n], unsure[:n, :m]

    def _moved(self, arithmetic: Arithmetic, points: np.ndarray, rows: np.ndarray) -> np.ndarray:
        block = points[rows]
        wide = np.promote_types(block.dtype, arithmetic.dtype)
        return _cast(block.astype(wide) - self._centre.astype(wide), arithmetic.dtype)

    def _left(self, arithmetic: Arithmetic, array: np.ndarray) -> Array:
        """An array of a block of a, padded with zeros and split over the devices."""
        if arithmetic is HOST:
            return array
        return self._put(_padded(array, self._shape[0], 0), split=True)

    def _right(self, arithmetic: Arithmetic, array: np.ndarray, fill: int = 0) -> Array:
        """An array of a block of b, padded and whole on every device."""
        if arithmetic is HOST:
            return array
        return self._put(_padded(array, self._shape[1], fill), split=False)

    def _put(self, array: np.ndarray, *, split: bool) -> jax.Array:
        if self._mesh is None:
            return jnp.asarray(array)
        sharding = batch_sharding(self._mesh) if split else replicated(self._mesh)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    def _run(
        self, step: Callable[..., Array], arithmetic: Arithmetic, left: tuple, right: tuple
    ) -> tuple[Array, ...]:
        if arithmetic is HOST:
            return step(arithmetic, left, right)
        return blocks.on_devices(step, self._mesh, left, right)


def _block_size(n: int, limit: int, multiple: int = 1) -> int:
    """Rows of the fewest equal blocks of at most `limit` rows, rounded up to a multiple."""
    even = -(-n // -(-n // limit))
    return -(-even // multiple) * multiple


def _parts(n: int, limit: int, *, multiple: int = 1) -> list[np.ndarray]:
    """The indices 0 … n−1 in equal blocks, the last one shorter."""
    size = _block_size(n, limit, multiple) if n else 1
    return [np.arange(first, min(first + size, n)) for first in range(0, n, size)]


def _cast(array: np.ndarray, dtype: type) -> np.ndarray:
    """An array in another dtype; what overflows is infinite, so its pairs are not certain."""
    with np.errstate(over="ignore"):
        return array.astype(dtype, copy=False)


def _padded(array: np.ndarray, size: int, fill: int) -> np.ndarray:
    """An array [r,…] padded to [size,…]."""
    missing = ((0, size - len(array)), *((0, 0) for _ in array.shape[1:]))
    return np.pad(array, missing, constant_values=fill)
