"""Draws from a whole data set: every epoch a permutation, on every mesh, and from any place."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drifting_jax.distributed import meshes, transfer
from drifting_jax.steps import dataset_queue

KEY = jax.random.key(7)


def make_batch(labels, mesh):
    """Images 2x2 whose pixels tell their index, left and right apart."""
    labels = np.sort(np.asarray(labels, np.int32), kind="stable")
    index = np.arange(len(labels), dtype=np.uint8)
    image = np.stack([index, 255 - index], axis=-1)[:, None, :, None].repeat(2, axis=1)
    return jax.device_put({"image": image, "label": labels}, meshes.replicated(mesh))


@functools.partial(jax.jit, static_argnames=("positives", "unconditional"))
def draw(queue, batch, labels, *, positives, unconditional=0):
    """What a step takes, and the queue after it."""
    dataset = dataset_queue.opened(queue, batch, KEY)
    counts = {"positives": positives, "unconditional": unconditional}
    chosen = dataset_queue.choose_rows(dataset, labels, **counts)
    images = {group: dataset_queue.take(dataset, x) for group, x in chosen.items()}
    return images, dataset_queue.moved_on(dataset, labels, **counts)


def indices(images):
    """[c, n] indices of images that are not mirrored."""
    left, right = np.asarray(images)[..., 0, 0, 0], np.asarray(images)[..., 0, 1, 0]
    np.testing.assert_array_equal(left.astype(int) + right, np.full(left.shape, 255))
    return left.astype(int)


def drawn(queue, batch, steps, **counts):
    """{group: indices [steps, c, n]} of steps whose rows have these labels, and the queue."""
    found = []
    for labels in steps:
        images, queue = draw(queue, batch, jnp.asarray(labels, jnp.int32), **counts)
        found.append({group: indices(x) for group, x in images.items()})
    return {group: np.stack([x[group] for x in found]) for group in found[0]}, queue


def assert_epochs(sequence, members):
    """Each whole epoch of a sequence is a permutation of the members, of many each its own."""
    size = len(members)
    epochs = [tuple(sequence[i : i + size]) for i in range(0, len(sequence) - size + 1, size)]
    assert len(epochs) >= 3
    for epoch in epochs:
        assert sorted(epoch) == sorted(members)
    assert len(set(epochs)) == len(epochs) if size > 8 else len(set(epochs)) > 2
    rest = sequence[len(epochs) * size :]
    assert len(set(rest)) == len(rest) and set(rest) <= set(members)


@pytest.mark.parametrize("rows", [1, 2])
def test_one_group_goes_through_the_data_by_permutations(rows):
    """Of 37 images, which no step divides; rows of a step follow each other."""
    mesh = meshes.make_mesh(1)
    queue = dataset_queue.init(1, mesh=mesh)
    found, queue = drawn(queue, make_batch(np.zeros(37), mesh), 20 * [rows * [0]], positives=10)
    assert found.keys() == {"positive"}
    assert_epochs(found["positive"].reshape(-1), range(37))
    assert divmod(20 * rows * 10, 37) == (int(queue.epoch[0]), int(queue.slot[0]))
    assert not queue.epoch[1] and not queue.slot[1]  # no unconditional sample was taken


def test_each_class_has_epochs_of_its_own():
    """With classes of 5, 9 and 3 images, drawn equally often or not; and all classes together."""
    mesh, rng = meshes.make_mesh(1), np.random.default_rng(0)
    batch = make_batch([0] * 5 + [1] * 9 + [2] * 3, mesh)
    steps = [rng.integers(0, 3, 4) for _ in range(20)]
    queue = dataset_queue.init(3, mesh=mesh)
    found, queue = drawn(queue, batch, steps, positives=2, unconditional=3)
    labels = np.concatenate(steps)
    positive = found["positive"].reshape(-1, 2)
    for label, members in enumerate((range(5), range(5, 14), range(14, 17))):
        sequence = positive[labels == label].reshape(-1)
        assert_epochs(sequence, members)
        place = int(queue.epoch[label]), int(queue.slot[label])
        assert divmod(len(sequence), len(members)) == place
    assert_epochs(found["unconditional"].reshape(-1), range(17))


def test_more_samples_than_there_are_repeat_evenly():
    mesh = meshes.make_mesh(1)
    queue = dataset_queue.init(1, mesh=mesh)
    found, _ = drawn(queue, make_batch(np.zeros(6), mesh), 2 * [[0]], positives=15)
    np.testing.assert_array_equal(np.bincount(found["positive"].reshape(-1)), 6 * [5])
    for row in found["positive"][:, 0]:
        assert set(np.bincount(row)) <= {2, 3}


def test_a_draw_from_a_place_is_that_of_a_run_that_came_there():
    """And the seed alone makes another order."""
    mesh = meshes.make_mesh(1)
    batch = make_batch([0] * 5 + [1] * 9, mesh)
    steps = [[0, 1], [1, 1], [0, 0], [1, 0]]
    counts = {"positives": 4, "unconditional": 3}
    whole, last = drawn(dataset_queue.init(2, mesh=mesh), batch, steps, **counts)
    _, half = drawn(dataset_queue.init(2, mesh=mesh), batch, steps[:2], **counts)
    places = {"epoch": np.asarray(half.epoch), "slot": np.asarray(half.slot)}
    stored = dataset_queue.init(2, mesh=mesh).replace(**places)
    rest, again = drawn(stored, batch, steps[2:], **counts)
    for group, x in rest.items():
        np.testing.assert_array_equal(x, whole[group][2:])
    np.testing.assert_array_equal(again.slot, last.slot)


@pytest.mark.parametrize("sizes, rows", [((4, 2), 8), ((8, 1), 1)])
def test_every_mesh_takes_the_same_and_nothing_moves(sizes, rows):
    """Rows over devices, or the samples of one row."""
    found = []
    for mesh in (meshes.make_mesh(1), meshes.make_mesh(*sizes)):
        queue = dataset_queue.init(1, mesh=mesh, flip=True)
        batch, labels = make_batch(np.zeros(50), mesh), jnp.zeros(rows, jnp.int32)
        for _ in range(2):
            images, queue = draw(queue, batch, labels, positives=16)
        found.append(transfer.fetch(images["positive"]))
    np.testing.assert_array_equal(*found)
    expected = meshes.row_sharding(mesh, rows, 16)
    assert images["positive"].sharding.is_equivalent_to(expected, 5)
    text = draw.lower(queue, batch, labels, positives=16).compile().as_text()
    for collective in ("all-reduce", "all-gather", "all-to-all", "collective-permute"):
        assert collective not in text


def test_flips_are_drawn_anew_in_each_epoch_and_change_no_order():
    mesh, n = meshes.make_mesh(1), 60
    batch, labels = make_batch(np.zeros(n), mesh), jnp.zeros(1, jnp.int32)
    epochs = []
    for flip in (False, True):
        queue = dataset_queue.init(1, mesh=mesh, flip=flip)
        for _ in range(3):
            images, queue = draw(queue, batch, labels, positives=n)
            epochs.append(np.asarray(images["positive"])[0, :, 0, :, 0].astype(int))
    plain, flipped = epochs[:3], epochs[3:]
    coins = []
    for one, other in zip(plain, flipped, strict=True):
        mirrored = (one[:, ::-1] == other).all(axis=1)
        assert ((one == other).all(axis=1) | mirrored).all()
        coins.append(mirrored[np.argsort(one[:, 0])])  # by image
        assert n / 4 < mirrored.sum() < 3 * n / 4
    assert (coins[0] != coins[1]).any() and (coins[1] != coins[2]).any()
