"""Nearest positives: which slots they are, how many, and that nothing else of a draw changes."""

import dataclasses
import functools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drifting_jax.compiler import hlo
from drifting_jax.compiler.collectives import collectives
from drifting_jax.distributed import meshes, transfer
from drifting_jax.method.fields.options import DriftOptions
from drifting_jax.steps import generator_rows, nearest, sample_queue
from drifting_jax.steps.generator_settings import GeneratorStepConfig
from drifting_jax.steps.rings import Nearest

CLASSES, PER_CLASS, WIDTH = 10, 6, 5
MESHES = {"1": (1, 1), "4x2": (4, 2)}
ANCHORS, UNIFORM = jax.random.key(7), jax.random.key(1)


def history():
    """(numbers [n, 1, 1, 1] of samples, labels [n], features [n, d]); class 9 has two samples."""
    rng = np.random.default_rng(0)
    labels = np.append(np.arange(72) % 9, [9, -1, 9, -1, -1, -1, -1, -1]).astype(np.int32)
    features = rng.normal(size=(len(labels), WIDTH)).astype(np.float32)
    numbers = np.arange(1, len(labels) + 1, dtype=np.float32)
    return numbers.reshape(-1, 1, 1, 1), labels, features


@functools.cache
def filled(mesh="1", *, features=True):
    """A queue after that history: classes 0 to 8 have overwritten their two oldest samples."""
    queue = sample_queue.init(
        CLASSES,
        per_class=PER_CLASS,
        unconditional=4,
        shape=(1, 1, 1),
        dtype=np.float32,
        mesh=meshes.make_mesh(*MESHES[mesh]),
        features=WIDTH if features else 0,
    )
    for part in range(5):
        piece = slice(16 * part, 16 * (part + 1))
        images, labels, kept = (x[piece] for x in history())
        queue = sample_queue.push(queue, images, labels, kept if features else None)
    return queue


def drawn(queue, labels, count, k=None, **more):
    """The numbers of drawn samples, [c, count]."""
    near = None if k is None else Nearest(ANCHORS, jnp.int32(k))
    found = sample_queue.draw(queue, UNIFORM, np.array(labels), count, nearest=near, **more)
    return np.asarray(found)[..., 0, 0, 0].astype(int)


def held(label: int) -> np.ndarray:
    """Numbers of the samples that the ring of a class holds."""
    return 1 + np.flatnonzero(history()[1] == label)[-PER_CLASS:]


def nearest_to(anchor: int, label: int) -> list[int]:
    """Numbers of a class's samples by their distance to one of them."""
    features = history()[2].astype(np.float64)
    distance = {n: np.mean((features[n - 1] - features[anchor - 1]) ** 2) for n in held(label)}
    return sorted(distance, key=distance.get)


LABELS = np.arange(40) % CLASSES


def test_they_are_the_nearest_to_an_anchor():
    found = drawn(filled(), LABELS, 5, k=5)
    for label, row in zip(LABELS, found, strict=True):
        expected = nearest_to(row[0], label)
        assert row.tolist() == (expected * 3)[:5]  # class 9 repeats its two samples
    anchors = [set(found[label == LABELS, 0]) for label in range(CLASSES)]
    assert sum(map(len, anchors)) > 2 * CLASSES  # an anchor for each row, not for each class


def test_an_anchor_may_be_any_sample_of_the_class():
    anchors = drawn(filled(), np.full(1200, 3), 1, k=1)[:, 0]
    numbers, counts = np.unique(anchors, return_counts=True)
    np.testing.assert_array_equal(numbers, held(3))
    assert np.abs(counts - 200).max() < 4.5 * math.sqrt(1200 * 5 / 36)


@pytest.mark.parametrize("k", [0, 2, 4])
def test_the_other_positives_are_those_of_a_uniform_draw(k):
    uniform = drawn(filled(features=False), LABELS, 4)
    found = drawn(filled(), LABELS, 4, k)
    np.testing.assert_array_equal(found[:, k:], uniform[:, k:])
    np.testing.assert_array_equal(found[:, :k], drawn(filled(), LABELS, 4, 4)[:, :k])
    assert k == 0 or (found[:, :k] != uniform[:, :k]).any()


def test_equal_distances_and_broken_features_draw_no_empty_slot():
    for value in (0.0, np.nan, np.inf):
        queue = sample_queue.init(
            1, per_class=4, unconditional=1, shape=(1, 1, 1), dtype=np.float32,
            mesh=meshes.make_mesh(1, 1), features=2,
        )  # fmt: skip
        images, features = np.ones((2, 1, 1, 1), np.float32), np.full((2, 2), value, np.float32)
        queue = sample_queue.push(queue, images, np.zeros(2, np.int32), features)
        assert (drawn(queue, np.zeros(8, int), 2, k=2) == 1).all()


@pytest.mark.parametrize("labels", [LABELS[:16], LABELS[:5]], ids=["rows split", "replicated"])
def test_numbers_do_not_depend_on_the_mesh(labels):
    for k in (0, 2, 5):
        found = drawn(filled("4x2"), labels, 5, k, piece_bytes=100)
        np.testing.assert_array_equal(found, drawn(filled(), labels, 5, k))
    kept = [np.asarray(filled(mesh).by_class.features)[:CLASSES] for mesh in MESHES]
    np.testing.assert_array_equal(*kept)


def test_features_stay_where_they_are():
    queue = filled("4x2")
    near, labels = Nearest(ANCHORS, jnp.int32(2)), jnp.arange(8)
    program = sample_queue.draw.lower(queue, UNIFORM, labels, 4, nearest=near)
    moved = collectives(hlo.parse(program.compile().as_text()), 8)
    assert max(one.size for one in moved) <= 8 * 4 * 4  # slots, and samples of four bytes


@pytest.mark.parametrize(
    ("start", "share", "num_steps"), [(4, 1.0, 12), (3, 0.5, 20), (7, 0.3, 10), (2, 1.0, 1)]
)
def test_how_many_there_are(start, share, num_steps):
    """k = start·(1 − t / (share·num_steps)), rounded up; 0 from there on."""
    end = Fraction(str(share)) * num_steps
    for step in range(num_steps + 2):
        expected = max(0, math.ceil(start * (1 - step / end)))
        found = nearest.count_at(jnp.int32(step), start=start, share=share, num_steps=num_steps)
        assert int(found) == expected


SETTINGS = GeneratorStepConfig(
    labels=8,
    generated=2,
    positives=4,
    unconditional=2,
    drift=DriftOptions(temperatures=(0.2,)),
    num_steps=8,
    cfg_minimum=1.0,
    cfg_maximum=4.0,
    cfg_power=3.0,
    cfg_probability_of_one=0.0,
    ema_decays=(0.9,),
)


def rows_of(mesh: str, step: int, **changes):
    settings = dataclasses.replace(SETTINGS, **changes)
    key = jax.random.key(5)
    draw = jax.jit(functools.partial(generator_rows.draw_rows, s=settings))
    rows = draw(key, jnp.int32(step), filled(mesh, features=settings.nearest > 0))
    rows = dataclasses.replace(rows, input_keys=jax.random.key_data(rows.input_keys))
    merged = jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:]), rows)
    return transfer.fetch(merged)


def test_a_step_without_nearest_ones_draws_the_rows_of_a_run_without():
    """Also in microbatches and on a mesh: k is 4 at step 0, and 0 from step 4 on."""
    off, on = {"nearest": 0}, {"nearest": 4, "nearest_share": 0.5}
    uniform = rows_of("1", 4, **off)
    jax.tree.map(np.testing.assert_array_equal, rows_of("1", 4, **on), uniform)
    first = rows_of("1", 0, **on)
    assert (first.positive != uniform.positive).any()
    np.testing.assert_array_equal(first.unconditional, uniform.unconditional)
    for step, expected in ((0, first), (4, uniform)):
        found = rows_of("4x2", step, microbatches=2, **on)
        jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_push_keeps_the_feature_of_each_sample():
    rng = np.random.default_rng(3)
    images = rng.integers(0, 256, (8, 4, 4, 3), dtype=np.uint8)
    labels = np.arange(8, dtype=np.int32) // 2
    mesh = meshes.make_mesh(4, 2)
    queue = sample_queue.init(
        4, per_class=2, unconditional=4, shape=(4, 4, 3), dtype=np.uint8, mesh=mesh, features=3
    )
    batch = transfer.global_batch(mesh, {"image": images, "label": labels})
    push = functools.partial(nearest.push, nearness=lambda scale, x: scale * jnp.mean(x, (1, 2)))
    queue = jax.jit(push, donate_argnums=0)(queue, jnp.float32(3), batch)
    expected = 3 * (images.astype(np.float64) / 127.5 - 1).mean((1, 2))
    found = np.asarray(queue.by_class.features)[:4].reshape(8, 3)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_arguments_are_checked():
    images, labels, features = (x[:2] for x in history())
    with pytest.raises(ValueError, match=r"float32.*\(2, 5\)\) for this queue, found None"):
        sample_queue.push(filled(), images, labels)
    with pytest.raises(ValueError, match=r"features .*\(2, 5\)\) for this queue, found .*\(1, 5\)"):
        sample_queue.push(filled(), images, labels, features[:1])
    with pytest.raises(ValueError, match=r"features None for this queue, found .*\(2, 5\)"):
        sample_queue.push(filled(features=False), images, labels, features)
    with pytest.raises(ValueError, match="expected a queue with features to draw nearest samples"):
        drawn(filled(features=False), LABELS, 4, k=2)
