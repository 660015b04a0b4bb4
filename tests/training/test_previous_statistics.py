"""A run whose S and norms are those of the step before: its start, a resume, a skipped step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run

from drifting_jax.data.sources import make_source
from drifting_jax.steps import sample_queue
from drifting_jax.training import build, frozen, initial_states, programs
from drifting_jax.training.program import carry_of
from drifting_jax.workdir.checkpoint import Checkpoints


@functools.cache
def started():
    """The program, its frozen encoder, and a batch of digits."""
    config = tiny_run.config(
        train__shared_statistics="previous", train__microbatches=2, drift__measure_reach=True
    )
    source, mesh = make_source(config.data, "train"), build.make_mesh(config)
    found = programs.generator_program(config, source, mesh)
    encoder = jax.jit(lambda: initial_states.init_encoder(config, source).params)()
    variables, *_ = frozen.place_networks(
        config, encoder, frozen.load_pretrained(config, source), mesh
    )
    rng = np.random.default_rng(0)
    shape = found.batch["image"].shape
    images = jnp.asarray(rng.integers(0, 256, shape, dtype=np.uint8))
    return found, variables, {"image": images, "label": jnp.arange(len(images), dtype=jnp.int32)}


def first_carry():
    """With a queue of twelve samples a class, and the statistics of the first rows."""
    program, variables, batch = started()
    carry = program.first_carry()
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (120, *batch["image"].shape[1:]), dtype=np.uint8)
    queue = sample_queue.push(carry.queue, images, np.arange(120, dtype=np.int32) % 10)
    return program.prepare(carry.replace(queue=queue), variables)


def after(carry, steps: int, variables=None):
    program, frozen_variables, batch = started()
    batch = {"image": batch["image"], "label": batch["label"] % 10}
    for _ in range(steps):
        carry, _ = program.step(carry, variables or frozen_variables, batch)
    return carry


def assert_same(found, expected):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), jax.device_get(expected))


def test_a_resumed_run_has_the_same_bits(tmp_path):
    program = started()[0]
    begun = first_carry()
    assert all(np.min(x.drift_mean_square) > 0 for x in begun.statistics.values())
    half = after(begun, 2)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(2, program.checkpoint_items(half, 2))
    expected = after(half, 2)
    with Checkpoints(tmp_path, keep=1, read_only=True) as checkpoints:
        step, items = checkpoints.restore_latest(program.checkpoint_items(program.carry, 0))
    assert step == 2
    assert_same(after(carry_of(items), 2), expected)


def test_a_line_says_how_many_positives_pull_a_sample():
    """And the next step does not carry it on."""
    program, variables, batch = started()
    batch = {"image": batch["image"], "label": batch["label"] % 10}
    carry, report = program.step(first_carry(), variables, batch)
    scalars = program.to_scalars(jax.device_get(report.metrics))
    for name in ("0.05", "0.2"):
        assert 1 <= scalars[f"effective_positives/{name}"] <= 4 + 1e-5
        assert 0 <= scalars[f"unreached/{name}"] < 1
    assert scalars["effective_positives/0.05"] < scalars["effective_positives/0.2"]
    assert all(x.unreached is None for x in carry.statistics.values())


def test_a_skipped_step_leaves_the_statistics():
    _, variables, _ = started()
    begun = first_carry()
    before = jax.device_get(begun.statistics)
    broken = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), variables)
    skipped = after(begun, 1, broken)
    assert int(skipped.state.skipped) == 1
    assert_same(skipped.statistics, before)
    went_on = after(skipped, 1)
    assert int(went_on.state.skipped) == 1
    with pytest.raises(AssertionError):
        assert_same(went_on.statistics, before)
