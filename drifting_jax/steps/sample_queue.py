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

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from drifting_jax.compatibility import as_varying
from drifting_jax.distributed import meshes
from drifting_jax.steps.rings import (
    FeatureRing,
    Nearest,
    Ring,
    advance,
    nearest_slots,
    random_slots,
    write,
)


@flax.struct.dataclass
class SampleQueue:
    """Rings of real samples on a mesh.

    `by_class.images` is `[classes_padded, per_class, *shape]`, sharded on its first axis over both
    mesh axes. Empty classes pad it to a multiple of the mesh's size, so a queue moves to another
    mesh by cutting or zero-padding the first axis of `by_class`. The counters are replicated, so
    that every device knows each slot. `unconditional.images`, `[unconditional, *shape]`, is
    replicated too: it is small, and drawn from more often than pushed to. If draws are to find
    nearest samples, `by_class` is a `FeatureRing`, whose features are sharded as its images.
    """

    by_class: Ring[jax.Array]
    unconditional: Ring[jax.Array]
    mesh: Mesh = flax.struct.field(pytree_node=False)
    num_classes: int = flax.struct.field(pytree_node=False)


def _specs(*, features: bool) -> tuple[Ring[P], Ring[P]]:
    """Returns how `init`'s rings are split."""
    rows = P(meshes.BATCH_AXES)
    by_class = FeatureRing(rows, P(), P(), rows) if features else Ring(rows, P(), P())
    return by_class, Ring(P(), P(), P())


def _has_features(queue: SampleQueue) -> bool:
    return isinstance(queue.by_class, FeatureRing)


def init(
    num_classes: int,
    *,
    per_class: int,
    unconditional: int,
    shape: Sequence[int],
    dtype: jax.typing.DTypeLike,
    mesh: Mesh,
    features: int = 0,
) -> SampleQueue:
    """Returns empty rings.

    Args:
        num_classes: labels are `0 … num_classes - 1`.
        per_class, unconditional: capacity of each class's ring, and of the ring of all classes.
        shape: of one sample.
        dtype: of the samples, in the ring as outside (uint8 stays uint8).
        mesh: see `meshes.make_mesh`.
        features: channels d of the feature that is kept of each sample of a class; 0 for none.

    Raises:
        ValueError: a count below 1.
    """
    sizes = (num_classes, per_class, unconditional, shape, dtype, mesh, features)
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
    features: int = 0,
) -> SampleQueue:
    """Returns the shapes and shardings of what `init` makes, as `jax.ShapeDtypeStruct`s."""
    sizes = (num_classes, per_class, unconditional, shape, dtype, mesh, features)
    rings, shardings = _empty_rings(*sizes)
    by_class, of_any = meshes.template(rings, shardings=lambda _: shardings)
    return SampleQueue(by_class=by_class, unconditional=of_any, mesh=mesh, num_classes=num_classes)


def _empty_rings(num_classes, per_class, unconditional, shape, dtype, mesh, features):
    """Returns a function that makes the rings of a queue, and their shardings."""
    _require_positive(num_classes=num_classes, per_class=per_class, unconditional=unconditional)
    padded = -(-num_classes // mesh.size) * mesh.size

    def empty(lead: tuple[int, ...], capacity: int) -> Ring[jax.Array]:
        counter = jnp.zeros(lead, jnp.int32)
        return Ring(jnp.zeros((*lead, capacity, *shape), dtype), counter, counter)

    def rings() -> tuple[Ring[jax.Array], Ring[jax.Array]]:
        by_class = empty((padded,), per_class)
        if features:
            kept = jnp.zeros((padded, per_class, features), jnp.float32)
            by_class = FeatureRing(by_class.images, by_class.next_slot, by_class.filled, kept)
        return by_class, empty((), unconditional)

    specs = _specs(features=features > 0)
    return rings, jax.tree.map(functools.partial(NamedSharding, mesh), specs)


@functools.partial(jax.jit, donate_argnames="queue")
def push(
    queue: SampleQueue, images: jax.Array, labels: jax.Array, features: jax.Array | None = None
) -> SampleQueue:
    """Adds samples to both rings, in order, overwriting the oldest. Donates the queue.

    Args:
        queue: must not be read afterwards, because its buffers are reused.
        images: `[b, *shape]` of the queue's shape and dtype, in any sharding.
        labels: `[b]` integers. If a class has more samples than its ring has slots, the last ones
            stay. A label outside `0 … num_classes - 1`, such as -1, marks padding, which both
            rings ignore.
        features: `[b, d]` float32, if the queue keeps features; else None.

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
    _require_features(queue, labels.shape[0], features)
    labels = labels.astype(jnp.int32)

    def on_device(
        by_class: Ring[jax.Array],
        of_any: Ring[jax.Array],
        images: jax.Array,
        labels: jax.Array,
        features: jax.Array | None,
    ) -> tuple[Ring[jax.Array], Ring[jax.Array]]:
        padded, local = by_class.filled.shape[0], by_class.images.shape[0]
        valid = (labels >= 0) & (labels < queue.num_classes)
        rows = jnp.where(valid, labels, padded)
        slots, next_slot, filled = advance(
            by_class.next_slot, by_class.filled, rows, by_class.images.shape[1]
        )
        mine = rows - jax.lax.axis_index(meshes.BATCH_AXES) * local
        written = write(by_class.images, images, mine, slots)
        if isinstance(by_class, FeatureRing) and features is not None:
            kept = write(by_class.features, features, mine, slots)
            by_class = dataclasses.replace(by_class, features=kept)
        by_class = dataclasses.replace(by_class, images=written, next_slot=next_slot, filled=filled)
        rows = jnp.where(valid, 0, 1)
        slots, *counters = advance(
            of_any.next_slot[None], of_any.filled[None], rows, of_any.images.shape[0]
        )
        written = write(of_any.images[None], images, rows, slots)
        return by_class, jax.tree.map(lambda x: x[0], Ring(written, *counters))

    specs = _specs(features=_has_features(queue))
    by_class, of_any = jax.shard_map(
        on_device, mesh=queue.mesh, in_specs=(*specs, P(), P(), P()), out_specs=specs
    )(queue.by_class, queue.unconditional, images, labels, features)
    return dataclasses.replace(queue, by_class=by_class, unconditional=of_any)


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
    nearest: Nearest | None = None,
) -> jax.Array:
    """Draws real samples of given classes: without replacement in a row, independently by row.

    Args:
        key: row i uses `fold_in(key, rows[i])`.
        labels: `[c]` integers; a class may appear in several rows. A row of an empty class, or of
            a label outside `0 … num_classes - 1`, is zeros (`filling.check_queue` rules it out).
        count: samples per row. A class that holds fewer repeats each of them evenly.
        rows: `[c]` numbers of the rows, if they are part of a larger draw; None for 0 … c-1.
        piece_bytes: bound on the bytes that a device moves at once; at least a sample per device.
        nearest: puts the samples nearest to an anchor in the first places of each row instead; the
            other places are as without, so a row may hold a sample twice.

    Returns:
        `[c, count, *shape]` of the queue's dtype, sharded by `meshes.row_sharding` if it divides,
        else replicated. The numbers are the same on every mesh.

    Raises:
        ValueError: labels that are not a vector of integers, no row or sample asked for, or
            nearest samples of a queue without features.
    """
    _require_labels(labels)
    _require_positive(rows=labels.shape[0], count=count)
    labels = labels.astype(jnp.int32)
    numbers = jnp.arange(labels.shape[0]) if rows is None else rows
    spec, split = _layout(queue.mesh, labels.shape[0], count)
    num_blocks = math.prod(split)
    if nearest is not None and not _has_features(queue):
        raise ValueError("expected a queue with features to draw nearest samples, found none")

    def on_device(
        by_class: Ring[jax.Array],
        key: jax.Array,
        labels: jax.Array,
        numbers: jax.Array,
        nearest: Nearest | None,
    ) -> jax.Array:
        local, capacity, *shape = by_class.images.shape
        filled = by_class.filled[labels]
        slots = random_slots(key, numbers, filled, capacity, count)
        own = labels - jax.lax.axis_index(meshes.BATCH_AXES) * local
        if isinstance(by_class, FeatureRing) and nearest is not None:
            near = nearest_slots(nearest.key, numbers, filled, by_class.features, own, count)
            near = jax.lax.psum(near, meshes.BATCH_AXES)  # from the device that owns the class
            slots = jnp.where(jnp.arange(count)[None] < nearest.count, near, slots)
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

    of_rings = _specs(features=_has_features(queue))[0]
    return jax.shard_map(
        on_device, mesh=queue.mesh, in_specs=(of_rings, P(), P(), P(), P()), out_specs=spec
    )(queue.by_class, key, labels, numbers, nearest)


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
        slots = random_slots(key, rows, jnp.broadcast_to(ring.filled, (c,)), capacity, count)
        blocks = _blocks(slots, split)
        block = 0 if math.prod(split) == 1 else jax.lax.axis_index(meshes.BATCH_AXES)
        drawn = ring.images[blocks[block]]
        return drawn.reshape(c // split[0], count // split[1], *shape)

    return jax.shard_map(
        on_device, mesh=queue.mesh, in_specs=(Ring(P(), P(), P()), P(), P()), out_specs=spec
    )(queue.unconditional, key, rows)


def _require_positive(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"expected {name} of at least 1, found {value}")


def _require_labels(labels: jax.Array) -> None:
    if labels.ndim != 1 or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"expected labels [n] of integers, found {labels.dtype}{labels.shape}")


def _require_features(queue: SampleQueue, count: int, features: jax.Array | None) -> None:
    expected, found = None, None if features is None else (features.dtype, features.shape)
    if isinstance(queue.by_class, FeatureRing):
        kept = queue.by_class.features
        expected = (kept.dtype, (count, kept.shape[-1]))
    if found != expected:
        raise ValueError(f"expected features {expected} for this queue, found {found}")
