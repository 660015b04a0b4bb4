"""Rings of samples: what they hold, how samples are written, and which slots a draw takes."""

from __future__ import annotations

from typing import Generic, TypeVar

import flax.struct
import jax
import jax.numpy as jnp

Leaf = TypeVar("Leaf")


@flax.struct.dataclass
class Ring(Generic[Leaf]):
    """One ring (leading shape `[]`), or one for each class (leading shape `[classes_padded]`).

    Slots fill from 0 upwards; then the oldest sample is overwritten. A ring that is not full holds
    its samples in the slots below `filled`. Its leaves are arrays, or what stands for each array:
    its shape, or how it is split over the mesh.
    """

    images: Leaf  # [..., capacity, *shape], the queue's dtype
    next_slot: Leaf  # [...] int32: where the next sample goes
    filled: Leaf  # [...] int32: slots that hold a sample


@flax.struct.dataclass
class FeatureRing(Ring[Leaf]):
    """A ring that also keeps a feature of each sample, in the sample's slot."""

    features: Leaf  # [..., capacity, d] float32


@flax.struct.dataclass
class Nearest:
    """Which slots of a draw are nearest ones: the first `count` of each row.

    Attributes:
        key: of the anchors; row i uses `fold_in(key, rows[i])`.
        count: `[]` int32, k.
    """

    key: jax.Array
    count: jax.Array


def advance(
    next_slot: jax.Array, filled: jax.Array, labels: jax.Array, capacity: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the slots of pushed samples and the counters afterwards.

    Takes counters `[n]` and labels `[b]` in `0 … n`, where `n` means that the sample is not kept.
    Returns `(slots [b], next_slot [n], filled [n])`. If a label has more samples than slots, later
    samples take the slots of earlier ones.
    """
    n, b = next_slot.shape[0], labels.shape[0]
    order = jnp.argsort(labels, stable=True)
    grouped = labels[order]
    rank = jnp.arange(b) - jnp.searchsorted(grouped, grouped)  # among its label, oldest first
    rank = jnp.zeros(b, jnp.int32).at[order].set(rank.astype(jnp.int32))
    counts = jnp.zeros(n, jnp.int32).at[labels].add(1, mode="drop")
    slots = (next_slot[jnp.minimum(labels, n - 1)] + rank) % capacity
    return slots, (next_slot + counts) % capacity, jnp.minimum(filled + counts, capacity)


def write(ring: jax.Array, images: jax.Array, rows: jax.Array, slots: jax.Array) -> jax.Array:
    """Returns `ring` after `ring[rows, slots] = images`, in order; rows outside are not written.

    It writes one slice after another, because a scatter makes TPUs copy the whole ring into another
    layout.
    """
    n = ring.shape[0]

    def one(ring: jax.Array, new: tuple) -> tuple[jax.Array, None]:
        image, row, slot = new
        at = (jnp.clip(row, 0, n - 1), slot, *[0] * image.ndim)
        old = jax.lax.dynamic_slice(ring, at, (1, 1, *image.shape))
        kept = jnp.where((row >= 0) & (row < n), image[None, None], old)
        return jax.lax.dynamic_update_slice(ring, kept, at), None

    return jax.lax.scan(one, ring, (images, rows, slots))[0]


def random_slots(
    key: jax.Array, rows: jax.Array, filled: jax.Array, capacity: int, count: int
) -> jax.Array:
    """Returns slots `[rows, count]` to draw: in each row a random order of its filled slots.

    Beyond `filled [rows]` the order starts again. Row i depends on `fold_in(key, rows[i])` alone.
    """

    def one(row: jax.Array, filled: jax.Array) -> jax.Array:
        scores = jax.random.bits(jax.random.fold_in(key, row), (capacity,), jnp.uint32)
        empty = jnp.arange(capacity) >= filled
        # A stable sort keeps filled slots ahead of empty ones even at equal scores.
        order = jnp.argsort(jnp.where(empty, jnp.uint32(0xFFFFFFFF), scores), stable=True)
        return _repeated(order, filled, count)

    return jax.vmap(one)(rows, filled)


def nearest_slots(
    key: jax.Array,
    rows: jax.Array,
    filled: jax.Array,
    features: jax.Array,
    places: jax.Array,
    count: int,
) -> jax.Array:
    """Returns slots `[rows, count]`: in each row those nearest to an anchor, nearest first.

    The anchor is a random filled slot of the row's ring, and the first slot of the order. Beyond
    `filled [rows]` the order starts again. Row i depends on `fold_in(key, rows[i])` alone.

    Args:
        key, rows, filled, count: as in `random_slots`.
        features: `[n, capacity, d]` of the rings at hand.
        places: `[rows]` of the rows' rings among them; a row whose place lies outside is zeros.
    """
    n = features.shape[0]

    # One row after another: the same arithmetic on every mesh and in every number of microbatches.
    def one(of_row: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        row, filled, place = of_row
        anchor = jax.random.randint(jax.random.fold_in(key, row), (), 0, jnp.maximum(filled, 1))
        order = _nearest_first(features[jnp.clip(place, 0, n - 1)], anchor, filled)
        return jnp.where((place >= 0) & (place < n), _repeated(order, filled, count), 0)

    return jax.lax.map(one, (rows, filled, places))


def _nearest_first(features: jax.Array, anchor: jax.Array, filled: jax.Array) -> jax.Array:
    """Returns the slots `[capacity]` of one ring by their distance to the slot `anchor`.

    The distance is the mean squared difference of features `[capacity, d]`. Of equal distances the
    lower slot comes first. Empty slots come last, even behind features that are not finite.
    """
    distance = jnp.mean(jnp.square(features - features[anchor][None]), axis=-1)
    distance = jnp.where(jnp.isfinite(distance), distance, jnp.finfo(distance.dtype).max)
    empty = jnp.arange(len(features)) >= filled
    return jnp.argsort(jnp.where(empty, jnp.inf, distance), stable=True)


def _repeated(order: jax.Array, filled: jax.Array, count: int) -> jax.Array:
    """Returns the first `count` slots of an order, which starts again after `filled`."""
    return order[jnp.arange(count) % jnp.maximum(filled, 1)].astype(jnp.int32)
