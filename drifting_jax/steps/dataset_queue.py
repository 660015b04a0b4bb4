"""The whole data set on every device, drawn without replacement.

Each class has one endless sequence: a random permutation of its samples, then another one, and so
on. A permutation is called an epoch, and depends on the key, the class and its number alone. The
class rows of a step take the next samples of their class, the first row first. All classes together
have such a sequence too, which unconditional samples come from.

A run carries only the places in the sequences; the data set is the batch of every step. The indices
are those of the whole step, so the mesh and the microbatches do not change them. Nothing moves
between devices.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from drifting_jax.distributed import class_rows, meshes
from drifting_jax.steps.rings import random_slots

# Of the key of a run's steps, which are below 2**31: no step has this number.
_ORDER = np.uint32(2**32 - 1)


@flax.struct.dataclass
class DatasetQueue:
    """Where the sequences stand: one for each class, then that of all classes together.

    Attributes:
        epoch: `[classes + 1]` int32, number of the permutation that gives the next sample.
        slot: `[classes + 1]` int32, its place there.
        mesh: see `meshes.make_mesh`.
        num_classes: labels are `0 … num_classes - 1`.
        flip: whether half of the drawn samples are mirrored left to right, at random.
    """

    epoch: jax.Array
    slot: jax.Array
    mesh: Mesh = flax.struct.field(pytree_node=False)
    num_classes: int = flax.struct.field(pytree_node=False)
    flip: bool = flax.struct.field(pytree_node=False, default=False)


@flax.struct.dataclass
class Dataset:
    """A data set at hand, with the places of its queue.

    Attributes:
        queue: the places.
        images: `[n, *shape]`, sorted by label, on every device.
        labels: `[n]` int32, rising.
        key: of all permutations and flips.
    """

    queue: DatasetQueue
    images: jax.Array
    labels: jax.Array
    key: jax.Array

    @property
    def mesh(self) -> Mesh:
        return self.queue.mesh

    @property
    def num_classes(self) -> int:
        return self.queue.num_classes


@flax.struct.dataclass
class Chosen:
    """Which samples class rows take.

    Attributes:
        index: `[c, n]` int32, of the images.
        flipped: `[c, n]` bool.
    """

    index: jax.Array
    flipped: jax.Array


def init(num_classes: int, *, mesh: Mesh, flip: bool = False) -> DatasetQueue:
    """Returns the places at the beginning of all sequences."""
    places = jax.jit(_first_places, static_argnums=0, out_shardings=meshes.replicated(mesh))
    epoch, slot = places(num_classes)
    return DatasetQueue(epoch, slot, mesh=mesh, num_classes=num_classes, flip=flip)


def template(num_classes: int, *, mesh: Mesh, flip: bool = False) -> DatasetQueue:
    """Returns the shapes and shardings of what `init` makes, as `jax.ShapeDtypeStruct`s."""
    epoch, slot = meshes.template(
        lambda: _first_places(num_classes), shardings=lambda _: (meshes.replicated(mesh),) * 2
    )
    return DatasetQueue(epoch, slot, mesh=mesh, num_classes=num_classes, flip=flip)


def _first_places(num_classes: int) -> tuple[jax.Array, jax.Array]:
    return jnp.zeros(num_classes + 1, jnp.int32), jnp.zeros(num_classes + 1, jnp.int32)


def opened(queue: DatasetQueue, batch: Mapping[str, jax.Array], key: jax.Array) -> Dataset:
    """Returns the data set that a step draws from.

    Args:
        queue: the places.
        batch: the data set, {"image": `[n, *shape]`, "label": `[n]` int32}, sorted by label.
        key: the root key of the steps, the same for all of them.
    """
    return Dataset(queue, batch["image"], batch["label"], jax.random.fold_in(key, _ORDER))


def choose_rows(
    dataset: Dataset, labels: jax.Array, *, positives: int, unconditional: int
) -> dict[str, Chosen]:
    """Returns the next samples for the class rows of a step: {"positive": …, "unconditional": …}.

    Args:
        dataset: see `opened`.
        labels: `[c]` integers of all rows of the step.
        positives: samples of its class for each row. A class of fewer samples begins another epoch
            within the row, and so repeats them evenly.
        unconditional: samples of any class for each row; 0 for none.
    """
    found = {"positive": _choose(dataset, labels, positives)}
    if unconditional:
        any_class = jnp.full(labels.shape, dataset.num_classes, jnp.int32)
        found["unconditional"] = _choose(dataset, any_class, unconditional)
    return found


def take(dataset: Dataset, chosen: Chosen) -> jax.Array:
    """Returns the chosen images `[c, n, *shape]`, split by `meshes.row_sharding` if it divides."""
    sharding = class_rows.real_sharding(dataset.mesh, *chosen.index.shape)
    index = jax.lax.with_sharding_constraint(chosen.index, sharding)
    images = jax.lax.with_sharding_constraint(dataset.images[index], sharding)
    if not dataset.queue.flip:
        return images
    mirrored = jnp.flip(images, axis=-2)
    return jnp.where(chosen.flipped[..., None, None, None], mirrored, images)


def moved_on(
    dataset: Dataset, labels: jax.Array, *, positives: int, unconditional: int
) -> DatasetQueue:
    """Returns the places after a step; arguments as of `choose_rows`."""
    queue = dataset.queue
    taken = jnp.zeros_like(queue.slot).at[labels].add(positives)
    taken = taken.at[dataset.num_classes].add(unconditional * labels.shape[0])
    size = _bounds(dataset)[1]
    at = queue.slot + taken
    return dataclasses.replace(queue, epoch=queue.epoch + at // size, slot=at % size)


def _bounds(dataset: Dataset) -> tuple[jax.Array, jax.Array]:
    """Where the samples of each sequence begin among the images, and how many there are, >= 1."""
    n = dataset.labels.shape[0]
    edges = jnp.searchsorted(dataset.labels, jnp.arange(dataset.num_classes + 1))
    edges = edges.astype(jnp.int32)
    sizes = jnp.append(jnp.diff(edges), jnp.int32(n))
    return edges.at[-1].set(0), jnp.maximum(sizes, 1)


def _choose(dataset: Dataset, sequences: jax.Array, count: int) -> Chosen:
    """The next `count` samples for each row of its sequence, of which [c] has the number."""
    queue = dataset.queue
    starts, sizes = _bounds(dataset)
    same = sequences[:, None] == sequences[None]
    earlier = jnp.sum(jnp.tril(same, -1), axis=1, dtype=jnp.int32)  # rows of the same sequence
    size = sizes[sequences]
    first = queue.slot[sequences] + earlier * count
    epoch = queue.epoch[sequences] + first // size
    rows = (sequences, starts[sequences], size, epoch, first % size)
    of_rows = functools.partial(
        _next_of_rows,
        count=count,
        capacity=dataset.labels.shape[0],
        num_sequences=queue.num_classes + 1,
    )
    # By every device for itself: the compiler might split a row's indices and gather them again.
    alone = jax.shard_map(of_rows, mesh=queue.mesh, in_specs=(P(), P()), out_specs=P())
    return Chosen(*alone(rows, dataset.key))


def _next_of_rows(
    rows: tuple[jax.Array, ...],
    key: jax.Array,
    *,
    count: int,
    capacity: int,
    num_sequences: int,
) -> tuple[jax.Array, jax.Array]:
    """Index and flip [c, count] of the samples after a place in each row's sequence.

    Args:
      rows: [c] each: number of the sequence, where its samples begin among the images, how many
        there are, and the epoch and the slot of the first one.
      key: of all sequences.
      count: samples of a row.
      capacity: of the largest sequence, at least.
      num_sequences: how many there are.
    """

    def of_row(row: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        sequence, start, size, epoch, slot = row
        at = slot + jnp.arange(count, dtype=jnp.int32)
        epochs, slots = epoch + at // size, at % size
        order_key, flip_key = (
            jax.random.fold_in(key, sequence + i * num_sequences) for i in range(2)
        )

        def of_epoch(number: jax.Array, found: tuple[jax.Array, jax.Array]):
            order = random_slots(order_key, number[None], size[None], capacity, capacity)[0]
            coins = jax.random.bernoulli(jax.random.fold_in(flip_key, number), 0.5, (capacity,))
            here, (index, flipped) = epochs == number, found
            index = jnp.where(here, start + order[slots], index)
            return index, jnp.where(here, coins[slots], flipped)

        nothing = jnp.zeros(count, jnp.int32), jnp.zeros(count, jnp.bool)
        return jax.lax.fori_loop(epochs[0], epochs[-1] + 1, of_epoch, nothing)

    return jax.lax.map(of_row, rows)
