"""A run whose negatives are the samples of the step before: its start, its steps, a resume."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run

from drifting_jax.config.streams import stream_key
from drifting_jax.data.sources import make_source
from drifting_jax.distributed.class_rows import to_float
from drifting_jax.errors import UserError
from drifting_jax.method.feature_losses import feature_drifting_loss
from drifting_jax.models import generators
from drifting_jax.steps import generator_rows, sample_queue
from drifting_jax.training import build, frozen, initial_states, programs
from drifting_jax.training.memory_plan import memory_plan
from drifting_jax.training.program import carry_of
from drifting_jax.workdir.checkpoint import Checkpoints

STALE = {"drift__negatives": "stale", "train__labels_per_step": 10, "optim__warmup_steps": 1}
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@functools.cache
def started(**changes):
    """Config, source, program and frozen encoder."""
    config = tiny_run.config(**STALE | {"train__microbatches": 2} | changes)
    source, mesh = make_source(config.data, "train"), build.make_mesh(config)
    program = programs.generator_program(config, source, mesh)
    encoder = jax.jit(lambda: initial_states.init_encoder(config, source).params)()
    variables, *_ = frozen.place_networks(
        config, encoder, frozen.load_pretrained(config, source), mesh
    )
    return config, source, program, variables


def batch(program):
    rng = np.random.default_rng(0)
    shape = program.batch["image"].shape
    images = jnp.asarray(rng.integers(0, 256, shape, dtype=np.uint8))
    return {"image": images, "label": jnp.arange(len(images), dtype=jnp.int32) % 10}


def unprepared(**changes):
    """A carry with parameters that make other samples of other noise, and a filled queue."""
    _, _, program, _ = started(**changes)
    carry, rng = program.first_carry(), np.random.default_rng(1)
    images = rng.integers(0, 256, (120, *program.batch["image"].shape[1:]), dtype=np.uint8)
    queue = sample_queue.push(carry.queue, images, np.arange(120, dtype=np.int32) % 10)
    params = jax.tree.map(
        lambda x: jnp.float32(rng.normal(0, 0.2, x.shape)), jax.device_get(carry.state.params)
    )
    return carry.replace(queue=queue, state=carry.state.replace(params=params))


def prepared(**changes):
    _, _, program, variables = started(**changes)
    return program.prepare(unprepared(**changes), variables)


def after(carry, steps, variables=None, **changes):
    _, _, program, frozen_variables = started(**changes)
    for _ in range(steps):
        carry, report = program.step(carry, variables or frozen_variables, batch(program))
    return carry, report


def drawn(carry, *, pushed):
    """The rows of the next step, all in one, and the features of its samples by other keys.

    They come from the parts that a step is made of.
    """
    config, source, program, variables = started()
    settings = build.generator_step_config(config, memory_plan(config, program.mesh), ())
    settings = dataclasses.replace(settings, microbatches=1)
    key = jax.random.fold_in(stream_key(config, "generator_steps"), carry.state.step)
    model = build.make_generator(config, source)
    function = build.make_feature_function(config, source)

    @jax.jit
    def draw(carry):
        queue = sample_queue.push(carry.queue, **pushed) if pushed else carry.queue
        rows = generator_rows.draw_rows(key, carry.state.step, queue, settings)
        rows = generator_rows.first_microbatch(rows)

        def features(images):
            c, n = images.shape[:2]
            found = function(variables, images.reshape(c * n, *images.shape[2:]))
            return {name: x.reshape(c, n, *x.shape[1:]) for name, x in found.items()}

        def of_keys(keys):
            inputs = jax.vmap(lambda key: generators.draw_inputs(key, model))
            noise, styles = inputs(keys.reshape(-1))
            label, alpha = (jnp.repeat(x, keys.shape[1]) for x in (rows.label, rows.cfg_scale))
            images = model.apply({"params": carry.state.params}, noise, label, styles, alpha)
            return features(images.reshape(*keys.shape, *images.shape[1:]))

        real = {n: features(to_float(getattr(rows, n))) for n in ("positive", "unconditional")}
        fresh = of_keys(generator_rows.draw_fresh_keys(key, settings))
        return rows, of_keys(rows.input_keys), fresh, real

    return settings, *draw(carry)


def assert_close(found, expected):
    assert set(found) == set(expected)
    for name, x in expected.items():
        np.testing.assert_allclose(found[name], x, err_msg=name, **CLOSE)


def assert_same(found, expected):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), jax.device_get(expected))


def test_the_first_negatives_are_a_fresh_batch_of_the_first_rows():
    _, samples, fresh, _ = drawn(unprepared(), pushed=None)[1:]
    found = prepared().negatives
    assert_close(found, fresh)
    assert any(np.abs(samples[name] - x).max() > 0.1 for name, x in found.items())


def test_a_step_takes_those_of_the_step_before_and_keeps_its_own():
    """Row by row, each with its class; its loss is that of a second batch with these features."""
    _, _, program, _ = started()
    carry, _ = after(prepared(), 1)
    before = jax.device_get(carry.negatives)
    new = batch(program)
    settings, rows, samples, _, real = drawn(
        carry, pushed={"images": new["image"], "labels": new["label"]}
    )
    np.testing.assert_array_equal(rows.label, np.arange(10))
    weight = jnp.broadcast_to(rows.weight[:, None], rows.unconditional.shape[:2])
    loss = jax.jit(functools.partial(feature_drifting_loss, options=settings.drift))
    expected, statistics = loss(samples, **real, fresh=before, unconditional_weight=weight)
    carry, report = after(carry, 1)
    assert_close(carry.negatives, samples)
    assert report.metrics.features is None  # a line of metrics does not fetch them
    np.testing.assert_allclose(report.metrics.loss, expected, rtol=1e-3)
    for name, x in report.metrics.statistics.items():
        of_step = statistics[name].drift_mean_square
        np.testing.assert_allclose(x.drift_mean_square, of_step, rtol=1e-2, err_msg=name)


def test_a_resumed_run_has_the_same_bits(tmp_path):
    program = started()[2]
    half, _ = after(prepared(), 1)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, program.checkpoint_items(half, 1))
    expected, _ = after(half, 2)
    with Checkpoints(tmp_path, keep=1, read_only=True) as checkpoints:
        _, items = checkpoints.restore_latest(program.checkpoint_items(program.carry, 0))
    assert_same(after(carry_of(items), 2)[0], expected)


def test_a_skipped_step_leaves_the_negatives():
    variables = started()[3]
    begun = prepared()
    before = jax.device_get(begun.negatives)
    broken = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), variables)
    skipped, report = after(begun, 1, broken)
    assert int(skipped.state.skipped) == 1 and not np.isfinite(report.metrics.gradient_norm)
    assert_same(skipped.negatives, before)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"train__microbatches": 1},
        {"train__microbatches": 1, "mesh__data": 2, "mesh__fsdp": 1},
        {"train__shared_statistics": "previous"},
    ],
    ids=str,
)
def test_in_one_piece_on_two_devices_and_with_statistics_of_the_step_before(changes):
    """In each case the first step keeps the same samples and measures the same distances."""
    carry, report = after(prepared(), 1)
    other, theirs = after(prepared(**changes), 1, **changes)
    assert_close(jax.device_get(other.negatives), jax.device_get(carry.negatives))
    for name, x in report.metrics.statistics.items():
        for wanted in ("distance_scale", "generated_distance"):
            found = getattr(theirs.metrics.statistics[name], wanted)
            np.testing.assert_allclose(found, getattr(x, wanted), rtol=1e-4)


def test_rows_without_a_class_of_their_own_are_refused():
    config = tiny_run.config(drift__negatives="stale")
    source = make_source(config.data, "train")
    with pytest.raises(UserError, match=r"must be a multiple .* found 4 rows and 10 classes"):
        build.check_models(config, source)
