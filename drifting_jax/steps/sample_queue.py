"""The sample queue: rings of real samples on the devices, with `init`, `push` and `draw`.

A drifting step compares generated samples with real samples of the same class (positives) and of
any class (unconditional). Both are drawn from rings that hold the newest samples (A.8): one ring
for each class, sharded over the whole mesh by class, and one ring of all classes, replicated. The
rings of the classes are never gathered: a push writes on the device that owns the class, and a draw
moves only the drawn samples, in parts of bounded size. The numbers do not depend on the mesh.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Generic, TypeVar

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from drifting_jax.compatibility import as_varying
from drifting_jax.distributed import meshes

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
class SampleQueue:
    """Rings of real samples on a mesh.

    `by_class.images` is `[classes_padded, per_class, *shape]`, sharded on its first axis over both
    mesh axes. Empty classes pad it to a multiple of the mesh's size, so a queue moves to another
    mesh by cutting or zero-padding the first axis of `by_class`. The counters are replicated, so
    that every device knows each slot. `unconditional.images`, `[unconditional, *shape]`, is
    replicated too: it is small, and drawn from more often than pushed to.
    """

    by_class: Ring[jax.Array]
    unconditional: Ring[jax.Array]
    mesh: Mesh = flax.struct.field(pytree_node=False)
    num_classes: int = flax.struct.field(pytree_node=False)


_SPECS = (Ring(P(meshes.BATCH_AXES), P(), P()), Ring(P(), P(), P()))  # as `init`'s rings


def init(
    num_classes: int,
    *,
    per_class: int,
    unconditional: int,
    shape: Sequence[int],
    dtype: jax.typing.DTypeLike,
    mesh: Mesh,
) -> SampleQueue:
    """Returns empty rings.

    Args:
        num_classes: labels are `0 … num_classes - 1`.
        per_class, unconditional: capacity of each class's ring, and of the ring of all classes.
        shape: of one sample.
        dtype: of the samples, in the ring as outside (uint8 stays uint8).
        mesh: see `meshes.make_mesh`.

    Raises:
        ValueError: a count below 1.
    """
    sizes = (num_classes, per_class, unconditional, shape, dtype, mesh)
    rings, shardings = _empty_rings(*sizes)
    by_class, of_any = jax.jit(rings, out_shardings=shardings)()
    return SampleQueue(by_class=by_class, unconditional=of_any, mesh=mesh, num_classes=num_classes)


def template(
    num_classes: int,
    *,
    per_class: int,
    unconditional: int,
    shape: Sequence[int],
    dtype: jax.typing.DTypeLike,
    mesh: Mesh,
) -> SampleQueue:
    """Returns the shapes and shardings of what `init` makes, as `jax.ShapeDtypeStruct`s."""
    sizes = (num_classes, per_class, unconditional, shape, dtype, mesh)
    rings, shardings = _empty_rings(*sizes)
    by_class, of_any = meshes.template(rings, shardings=lambda _: shardings)
    return SampleQueue(by_class=by_class, unconditional=of_any, mesh=mesh, num_classes=num_classes)


def _empty_rings(num_classes, per_class, unconditional, shape, dtype, mesh):
    """Returns a function that makes the rings of a queue, and their shardings."""
    _require_positive(num_classes=num_classes, per_class=per_class, unconditional=unconditional)
    padded = -(-num_classes // mesh.size) * mesh.size

    def empty(lead: tuple[int, ...], capacity: int) -> Ring[jax.Array]:
        counter = jnp.zeros(lead, jnp.int32)
        return Ring(jnp.zeros((*lead, capacity, *shape), dtype), counter, counter)

    def rings() -> tuple[Ring[jax.Array], Ring[jax.Array]]:
        return empty((padded,), per_class), empty((), unconditional)

    return rings, jax.tree.map(functools.partial(NamedSharding, mesh), _SPECS)


def _advance(
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


def _write(ring: jax.Array, images: jax.Array, rows: jax.Array, slots: jax.Array) -> jax.Array:
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


@functools.partial(jax.jit, donate_argnames="queue")
def push(queue: SampleQueue, images: jax.Array, labels: jax.Array) -> SampleQueue:
    """Adds samples to both rings, in order, overwriting the oldest. Donates the queue.

    Args:
        queue: must not be read afterwards, because its buffers are reused.
        images: `[b, *shape]` of the queue's shape and dtype, in any sharding.
        labels: `[b]` integers. If a class has more samples than its ring has slots, the last ones
            stay. A label outside `0 … num_classes - 1`, such as -1, marks padding, which both
            rings ignore.

    Raises:
        ValueError: a shape or a dtype other than the queue's.
    """
    _require_labels(labels)
    ring = queue.unconditional.images
    expected = (labels.shape[0], *ring.shape[1:])
    if images.shape != expected or images.dtype != ring.dtype:
        raise ValueError(
            f"expected images {ring.dtype}{expected} for this queue and these labels, found "
            f"{images.dtype}{images.shape}"
        )
    labels = labels.astype(jnp.int32)

    def on_device(
        by_class: Ring[jax.Array],
        of_any: Ring[jax.Array],
        images: jax.Array,
        labels: jax.Array,
    ) -> tuple[Ring[jax.Array], Ring[jax.Array]]:
        padded, local = by_class.filled.shape[0], by_class.images.shape[0]
        valid = (labels >= 0) & (labels < queue.num_classes)
        rows = jnp.where(valid, labels, padded)
        slots, *counters = _advance(
            by_class.next_slot, by_class.filled, rows, by_class.images.shape[1]
        )
        mine = rows - jax.lax.axis_index(meshes.BATCH_AXES) * local
        by_class = Ring(_write(by_class.images, images, mine, slots), *counters)
        rows = jnp.where(valid, 0, 1)
        slots, *counters = _advance(
            of_any.next_slot[None], of_any.filled[None], rows, of_any.images.shape[0]
        )
        written = _write(of_any.images[None], images, rows, slots)
        return by_class, jax.tree.map(lambda x: x[0], Ring(written, *counters))

    by_class, of_any = jax.shard_map(
        on_device, mesh=queue.mesh, in_specs=(*_SPECS, P(), P()), out_specs=_SPECS
    )(queue.by_class, queue.unconditional, images, labels)
    return dataclasses.replace(queue, by_class=by_class, unconditional=of_any)


def _slots(
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
        return order[jnp.arange(count) % jnp.maximum(filled, 1)].astype(jnp.int32)

    return jax.vmap(one)(rows, filled)


def _layout(mesh: Mesh, rows: int, count: int) -> tuple[P, tuple[int, int]]:
    """Returns the spec of drawn samples, and the blocks it makes of rows and of a row's samples."""
    try:
        sharding = meshes.row_sharding(mesh, rows, count)
    except ValueError:
        return P(), (1, 1)
    local = sharding.shard_shape((rows, count))
    return sharding.spec, (rows // local[0], count // local[1])


def _blocks(index: jax.Array, split: tuple[int, int]) -> jax.Array:
    """Returns `[blocks, rows * count / blocks]` of `[rows, count]`; block i is of device i."""
    (rows, count), (r, g) = index.shape, split
    return index.reshape(r, rows // r, g, count // g).swapaxes(1, 2).reshape(r * g, -1)


@functools.partial(jax.jit, static_argnames=("count", "piece_bytes"))
def draw(
    queue: SampleQueue,
    key: jax.Array,
    labels: jax.Array,
    count: int,
    *,
    rows: jax.Array | None = None,
    piece_bytes: int = 2**26,
) -> jax.Array:
    """Draws real samples of given classes: without replacement in a row, independently by row.

    Args:
        key: row i uses `fold_in(key, rows[i])`.
        labels: `[c]` integers; a class may appear in several rows. A row of an empty class, or of
            a label outside `0 … num_classes - 1`, is zeros (`filling.check_queue` rules it out).
        count: samples per row. A class that holds fewer repeats each of them evenly.
        rows: `[c]` numbers of the rows, if they are part of a larger draw; None for 0 … c-1.
        piece_bytes: bound on the bytes that a device moves at once; at least a sample per device.

    Returns:
        `[c, count, *shape]` of the queue's dtype, sharded by `meshes.row_sharding` if it divides,
        else replicated. The numbers are the same on every mesh.

    Raises:
        ValueError: labels that are not a vector of integers, or no row or sample asked for.
    """
    _require_labels(labels)
    _require_positive(rows=labels.shape[0], count=count)
    labels = labels.astype(jnp.int32)
    numbers = jnp.arange(labels.shape[0]) if rows is None else rows
    spec, split = _layout(queue.mesh, labels.shape[0], count)
    num_blocks = math.prod(split)

    def on_device(
        by_class: Ring[jax.Array], key: jax.Array, labels: jax.Array, numbers: jax.Array
    ) -> jax.Array:
        local, capacity, *shape = by_class.images.shape
        slots = _slots(key, numbers, by_class.filled[labels], capacity, count)
        own = labels - jax.lax.axis_index(meshes.BATCH_AXES) * local
        rows = jnp.where((own >= 0) & (own < local), own, local)  # past the end it reads zeros
        rows = _blocks(jnp.broadcast_to(rows[:, None], slots.shape), split)
        slots = _blocks(slots, split)
        size = slots.shape[1]
        sample_bytes = max(1, math.prod(shape) * by_class.images.dtype.itemsize)
        piece = max(1, min(size, piece_bytes // (num_blocks * sample_bytes)))

        def move(i: jax.Array, drawn: jax.Array) -> jax.Array:
            start = jnp.minimum(i * piece, size - piece)  # the last part may overlap its neighbour
            at = [jax.lax.dynamic_slice_in_dim(x, start, piece, axis=1) for x in (rows, slots)]
            mine = by_class.images.at[tuple(at)].get(mode="fill", fill_value=0)
            # Only one device owns a class, so a sum over devices moves its samples.
            if num_blocks == 1:
                moved = jax.lax.psum(mine[0], meshes.BATCH_AXES)
            else:
                moved = jax.lax.psum_scatter(mine, meshes.BATCH_AXES, scatter_dimension=0)
            return jax.lax.dynamic_update_slice_in_dim(drawn, moved, start, axis=0)

        drawn = jnp.zeros((size, *shape), by_class.images.dtype)
        if num_blocks > 1:
            drawn = as_varying(drawn, meshes.BATCH_AXES)
        drawn = jax.lax.fori_loop(0, -(-size // piece), move, drawn)
        return drawn.reshape(labels.shape[0] // split[0], count // split[1], *shape)

    return jax.shard_map(
        on_device, mesh=queue.mesh, in_specs=(_SPECS[0], P(), P(), P()), out_specs=spec
    )(queue.by_class, key, labels, numbers)


@functools.partial(jax.jit, static_argnames="count")
def draw_unconditional(
    queue: SampleQueue, key: jax.Array, rows: jax.Array, count: int
) -> jax.Array:
    """Draws real samples of any class: without replacement in a row, independently by row.

    Args:
        key: row i uses `fold_in(key, rows[i])`. It must differ from the key of `draw`, or the two
            choices are related.
        rows: `[c]` numbers of the class rows.
        count: samples per row. If the ring holds fewer, each is repeated evenly.

    Returns:
        `[c, count, *shape]` of the queue's dtype, sharded as in `draw` and the same on every mesh;
        zeros from an empty ring. Nothing moves between devices.

    Raises:
        ValueError: no row or no sample asked for.
    """
    c = rows.shape[0]
    _require_positive(rows=c, count=count)
    spec, split = _layout(queue.mesh, c, count)

    def on_device(ring: Ring[jax.Array], key: jax.Array, rows: jax.Array) -> jax.Array:
        capacity, *shape = ring.images.shape
        slots = _slots(key, rows, jnp.broadcast_to(ring.filled, (c,)), capacity, count)
        blocks = _blocks(slots, split)
        block = 0 if math.prod(split) == 1 else jax.lax.axis_index(meshes.BATCH_AXES)
        drawn = ring.images[blocks[block]]
        return drawn.reshape(c // split[0], count // split[1], *shape)

    return jax.shard_map(
        on_device, mesh=queue.mesh, in_specs=(_SPECS[1], P(), P()), out_specs=spec
    )(queue.unconditional, key, rows)


def _require_positive(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"expected {name} of at least 1, found {value}")


def _require_labels(labels: jax.Array) -> None:
    if labels.ndim != 1 or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"expected labels [n] of integers, found {labels.dtype}{labels.shape}")
