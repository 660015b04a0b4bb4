"""Rings against a plain model; numbers and collectives on several meshes."""

import functools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drifting_jax.compiler import hlo
from drifting_jax.compiler.collectives import collectives
from drifting_jax.distributed import meshes, transfer
from drifting_jax.steps import sample_queue

FIXTURE = Path(__file__).parents[1] / "fixtures" / "release" / "H_memory_bank.npz"
SHAPE = (2, 3)
MESHES = {"1": (1, 1), "8x1": (8, 1), "4x2": (4, 2)}


class PlainRing:
    """A ring as a list and a pointer, one sample at a time."""

    def __init__(self, capacity: int):
        self.slots = [np.zeros(SHAPE) for _ in range(capacity)]
        self.pushed = 0

    def push(self, image: np.ndarray) -> None:
        self.slots[self.pushed % len(self.slots)] = image
        self.pushed += 1

    @property
    def state(self) -> tuple[np.ndarray, int, int]:
        capacity = len(self.slots)
        return np.stack(self.slots), self.pushed % capacity, min(self.pushed, capacity)


def make(num_classes=5, mesh=(4, 2), *, dtype=np.float32, per_class=3, unconditional=7):
    return sample_queue.init(
        num_classes,
        per_class=per_class,
        unconditional=unconditional,
        shape=SHAPE,
        dtype=dtype,
        mesh=meshes.make_mesh(*mesh),
    )


def numbered(start: int, count: int, dtype=np.float32) -> np.ndarray:
    """Images that tell their number."""
    numbers = np.arange(start, start + count, dtype=dtype).reshape(-1, 1, 1)
    return np.broadcast_to(numbers, (count, *SHAPE)).copy()


def assert_rings(queue, by_class, unconditional):
    """Whole rings, padding classes included, equal those of plain rings."""
    empty = PlainRing(queue.by_class.images.shape[1])
    padding = queue.by_class.filled.shape[0] - len(by_class)
    states = [ring.state for ring in [*by_class, *[empty] * padding]]
    for ring, expected in (
        (queue.by_class, [np.stack(part) for part in zip(*states, strict=True)]),
        (queue.unconditional, unconditional.state),
    ):
        found = (ring.images, ring.next_slot, ring.filled)
        for x, y in zip(found, expected, strict=True):
            np.testing.assert_array_equal(np.asarray(x), y)


def test_push_reproduces_the_release_ring():
    z = np.load(FIXTURE)
    n, capacity = int(z["num_classes"]), int(z["max_size"])
    queue = make(n, per_class=capacity)
    for i in range(4):
        queue = sample_queue.push(queue, z[f"add{i}/samples"], z[f"add{i}/labels"])
        ring = jax.tree.map(lambda x: np.asarray(x)[:n], queue.by_class)
        np.testing.assert_array_equal(ring.images, z[f"add{i}/bank"])
        np.testing.assert_array_equal(ring.next_slot, z[f"add{i}/ptr"])
        np.testing.assert_array_equal(ring.filled, z[f"add{i}/count"])


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.lists(st.integers(-1, 5), min_size=10, max_size=10),  # 5 is no class
            st.integers(0, 4).map(lambda label: [label] * 10),  # more than any ring holds
        ),
        min_size=1,
        max_size=4,
    )
)
def test_push_is_one_sample_after_another(pushes):
    queue = make()
    by_class, unconditional = [PlainRing(3) for _ in range(5)], PlainRing(7)
    for i, labels in enumerate(pushes):
        images = numbered(1 + 10 * i, 10)
        queue = sample_queue.push(queue, images, np.array(labels, np.int32))
        for image, label in zip(images, labels, strict=True):
            if 0 <= label < 5:
                by_class[label].push(image)
                unconditional.push(image)
        assert_rings(queue, by_class, unconditional)


@functools.cache
def draws(mesh: tuple[int, int], dtype: str) -> tuple[list, list]:
    """`(drawn, shardings)` of one history on one mesh: even, uneven and repeating draws."""
    queue = make(10, mesh, dtype=dtype, per_class=4, unconditional=20)
    rng = np.random.default_rng(0)
    for i in range(4):
        labels = rng.integers(-1, 10, 24).astype(np.int32)
        images = rng.integers(0, 256, (24, *SHAPE)).astype(dtype)
        batch = transfer.global_batch(queue.mesh, {"image": images, "label": labels})
        # In any sharding, and from the host.
        image, label = (images, labels) if i % 2 else (batch["image"], batch["label"])
        queue = sample_queue.push(queue, image, label)
    key = jax.random.key(1)
    draw = functools.partial(sample_queue.draw, queue, key)
    piece = 3 * 8 * math.prod(SHAPE) * np.dtype(dtype).itemsize
    drawn = [draw(np.arange(16) % 10, 5, piece_bytes=piece)]  # rows over both axes
    if dtype == "uint8":
        drawn += [
            draw(np.array([9, 0, 9, 3]), 6),  # on 4x2: rows over `data`, samples over `fsdp`
            draw(np.array([7, 2, 7]), 8),  # samples over both
            draw(np.array([1, 8, 5]), 3, piece_bytes=1),  # nothing divides: replicated
            sample_queue.draw_unconditional(queue, key, np.arange(4), 6),
            sample_queue.draw_unconditional(queue, key, np.arange(3), 5),
        ]
    return [np.asarray(x) for x in drawn], [x.sharding for x in drawn]


@pytest.mark.parametrize(
    ("mesh", "dtype"), [("8x1", "uint8"), ("4x2", "uint8"), ("4x2", "float16")]
)
def test_numbers_do_not_depend_on_the_mesh(mesh, dtype):
    found, shardings = draws(MESHES[mesh], dtype)
    expected, _ = draws(MESHES["1"], dtype)
    for x, y, sharding in zip(found, expected, shardings, strict=True):
        assert x.dtype == np.dtype(dtype)
        np.testing.assert_array_equal(x, y)
        assert np.unique(x).size > 3  # the draw is not of zeros
        try:
            on = meshes.row_sharding(meshes.make_mesh(*MESHES[mesh]), *x.shape[:2])
        except ValueError:
            assert sharding.is_fully_replicated
        else:
            assert sharding.is_equivalent_to(on, x.ndim)


def numbers(drawn: jax.Array) -> np.ndarray:
    """What `numbered` images say, `[c, count]`; all pixels of an image agree."""
    drawn = np.asarray(drawn)
    np.testing.assert_array_equal(drawn, np.broadcast_to(drawn[..., :1, :1], drawn.shape))
    return drawn[..., 0, 0].astype(int)


def filled_queue():
    """Class k of 5 holds the numbers 10·k + 1 … 10·k + 6 but class 4, which holds 43 … 45 alone."""
    queue = make(per_class=6, unconditional=50)
    for label, (first, count) in enumerate([(1, 6), (11, 6), (21, 6), (31, 6), (43, 3)]):
        padded = np.concatenate([numbered(first, count), numbered(0, 6 - count)])
        labels = np.array([label] * count + [-1] * (6 - count), np.int32)
        queue = sample_queue.push(queue, padded, labels)
    return queue


def test_draw_is_without_replacement_within_a_row():
    queue, labels = filled_queue(), np.array([0, 3, 3, 2, 1, 4, 3, 0])
    drawn = numbers(sample_queue.draw(queue, jax.random.key(0), labels, 3))
    for row, label in zip(drawn, labels, strict=True):
        assert len(set(row)) == 3
        assert set(row) <= set(range(10 * label + 1, 10 * label + 7))
    assert len({tuple(drawn[i]) for i in (1, 2, 6)}) > 1  # rows of one class differ
    other = numbers(sample_queue.draw(queue, jax.random.key(1), labels, 3))
    assert (drawn != other).any()


def test_draw_repeats_evenly_what_is_short():
    queue = filled_queue()
    drawn = numbers(sample_queue.draw(queue, jax.random.key(0), np.array([4, 0]), 8))
    assert sorted(np.bincount(drawn[0])[43:46]) == [2, 3, 3]
    assert sorted(np.bincount(drawn[1])[1:7]) == [1, 1, 1, 1, 2, 2]
    drawn = numbers(sample_queue.draw_unconditional(queue, jax.random.key(0), np.arange(8), 54))
    counts = np.stack([np.bincount(row, minlength=46) for row in drawn])
    held = [n for k in range(4) for n in range(10 * k + 1, 10 * k + 7)] + [43, 44, 45]
    np.testing.assert_array_equal(counts[:, held], 2)


def test_a_row_depends_on_its_own_key_alone():
    queue, key = filled_queue(), jax.random.key(5)
    labels = np.array([0, 1, 2, 3, 0, 1, 2, 3])
    others = np.array([0, 4, 2, 4, 0, 4, 2, 4])
    x, y = (numbers(sample_queue.draw(queue, key, rows, 4)) for rows in (labels, others))
    np.testing.assert_array_equal(x[::2], y[::2])
    np.testing.assert_array_equal(x[:3], numbers(sample_queue.draw(queue, key, labels[:3], 4)))
    scores = jax.random.bits(jax.random.fold_in(key, 2), (6,), jnp.uint32)
    np.testing.assert_array_equal(x[2], 21 + np.argsort(np.asarray(scores))[:4])


def test_draw_is_uniform():
    queue, rows = filled_queue(), 1024
    drawn = numbers(sample_queue.draw(queue, jax.random.key(0), np.full(rows, 2), 2)) - 21
    pairs = np.bincount(6 * drawn[:, 0] + drawn[:, 1], minlength=36).reshape(6, 6)
    assert (np.diag(pairs) == 0).all()
    p = 1 / 30  # every ordered pair is as likely
    spread = 4.5 * math.sqrt(rows * p * (1 - p))
    assert (np.abs(pairs[~np.eye(6, dtype=bool)] - rows * p) < spread).all()


def test_labels_that_are_no_class_draw_zeros():
    queue = filled_queue()
    drawn = numbers(sample_queue.draw(queue, jax.random.key(0), np.array([-1, 0, 5, 7, 8]), 3))
    assert (drawn[[0, 2, 3, 4]] == 0).all() and (drawn[1] > 0).all()


def test_inside_a_jitted_step():
    images, labels = numbered(100, 8), np.arange(8, dtype=np.int32) % 5
    rows, key = np.arange(8) % 4, jax.random.key(3)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(queue, key, images, labels):
        queue = sample_queue.push(queue, images, labels)
        return queue, sample_queue.draw(queue, key, rows, 5)

    queue, drawn = step(filled_queue(), key, images, labels)
    expected = sample_queue.push(filled_queue(), images, labels)
    jax.tree.map(np.testing.assert_array_equal, queue, expected)
    again = sample_queue.draw(expected, key, rows, 5)
    np.testing.assert_array_equal(drawn, again)
    assert drawn.sharding.is_equivalent_to(again.sharding, drawn.ndim)
    for x, y in zip(jax.tree.leaves(queue), jax.tree.leaves(make()), strict=True):
        assert x.sharding.is_equivalent_to(y.sharding, x.ndim)


def test_no_collective_moves_more_than_is_drawn_or_pushed():
    queue = make(1000, dtype=np.uint8, per_class=32, unconditional=1000)
    key, image_bytes = jax.random.key(0), math.prod(SHAPE)
    labels = jnp.arange(8, dtype=jnp.int32)

    def moved(program):
        return [found.size for found in collectives(hlo.parse(program.compile().as_text()), 8)]

    for rows, count in ((8, 64), (3, 7)):
        drawn = moved(sample_queue.draw.lower(queue, key, labels[:rows], count))
        assert max(drawn) == rows * count * image_bytes
    bounded = sample_queue.draw.lower(queue, key, labels, 64, piece_bytes=8 * 5 * image_bytes)
    assert max(moved(bounded)) == 8 * 5 * image_bytes
    assert not moved(sample_queue.draw_unconditional.lower(queue, key, np.arange(8), 64))

    batch = transfer.global_batch(
        queue.mesh, (np.zeros((64, *SHAPE), np.uint8), np.zeros(64, np.int32))
    )
    push = sample_queue.push.lower(queue, *batch)
    assert max(moved(push)) == 64 * image_bytes
    memory = push.compile().memory_analysis()
    held = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(queue))
    assert memory.alias_size_in_bytes >= held  # in place
    assert memory.temp_size_in_bytes < held / 2


def test_arguments_are_checked():
    queue = filled_queue()
    push = functools.partial(sample_queue.push, queue)
    labels = np.zeros(2, np.int32)
    with pytest.raises(ValueError, match=r"float32\(2, 2, 3\).*found uint8\(2, 2, 3\)"):
        push(numbered(0, 2, np.uint8), labels)
    with pytest.raises(ValueError, match=r"float32\(2, 2, 3\).*found float32\(3, 2, 3\)"):
        push(numbered(0, 3), labels)
    with pytest.raises(ValueError, match=r"labels \[n\] of integers, found float32\(2,\)"):
        push(numbered(0, 2), labels.astype(np.float32))
    with pytest.raises(ValueError, match="expected count of at least 1, found 0"):
        sample_queue.draw(queue, jax.random.key(0), labels, 0)
    with pytest.raises(ValueError, match="expected rows of at least 1, found 0"):
        sample_queue.draw_unconditional(queue, jax.random.key(0), np.arange(0), 4)
    with pytest.raises(ValueError, match="expected unconditional of at least 1, found 0"):
        make(unconditional=0)
