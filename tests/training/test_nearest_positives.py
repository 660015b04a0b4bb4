"""A run with nearest positives: the features of its queue, its start, resumes and other meshes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run

from drifting_jax.data.sources import make_source
from drifting_jax.distributed import meshes, transfer
from drifting_jax.steps import sample_queue
from drifting_jax.steps.rings import Nearest
from drifting_jax.training import build, filling, frozen, initial_states, programs, queues
from drifting_jax.training.program import carry_of
from drifting_jax.workdir.checkpoint import Checkpoints


@functools.cache
def started():
    """Config, source, program, and a frozen encoder of two stages, of 4 and 8 channels."""
    config = tiny_run.config(
        train__nearest_positives=3,
        train__nearest_share=0.5,
        train__num_steps=8,
        train__microbatches=2,
        encoder__blocks=(1, 1),
        optim__warmup_steps=1,
    )
    source, mesh = make_source(config.data, "train"), build.make_mesh(config)
    program = programs.generator_program(config, source, mesh)
    encoder = jax.jit(lambda: initial_states.init_encoder(config, source).params)()
    variables, *_ = frozen.place_networks(
        config, encoder, frozen.load_pretrained(config, source), mesh
    )
    return config, source, program, variables


def batches(mesh, start=0):
    """Batches of the data, one record after another."""
    _, source, program, _ = started()
    size = len(program.batch["label"])
    while True:
        records = [source[(start + i) % len(source)] for i in range(size)]
        images = np.stack([record["image"] for record in records])
        labels = np.array([record["label"] for record in records], np.int32)
        yield transfer.global_batch(mesh, {"image": images, "label": labels})
        start += size


@functools.cache
def filled():
    """What a run's filling makes of the empty queue, on the host."""
    config, source, program, variables = started()
    push = filling.make_push(variables, build.make_nearness(config, source))
    size = config.queue.push_per_step
    queue, _ = filling.fill(program.make_queue(), batches(program.mesh), source, size, push=push)
    return transfer.fetch(queue)


def after(carry, steps: int):
    _, _, program, variables = started()
    new = batches(program.mesh, start=500)
    for _ in range(steps):
        carry, _ = program.step(carry, variables, next(new))
    return carry


def begun():
    _, _, program, _ = started()
    placed = jax.tree.map(
        lambda x, to: jax.device_put(x, to.sharding), filled(), program.carry.queue
    )
    return program.first_carry().replace(queue=placed)


def expected_features(queue) -> np.ndarray:
    """The feature "stage2/mean" of every sample that a queue holds, by the loss's function."""
    config, source, _, variables = started()
    function = build.make_feature_function(config, source)
    images = np.asarray(queue.by_class.images)
    flat = images.reshape(-1, *images.shape[2:]) / np.float32(127.5) - 1
    found = jax.jit(function)(variables, flat)["stage2/mean"]
    return np.asarray(found).reshape(*images.shape[:2], -1)


def test_the_queue_keeps_the_means_of_the_last_stage():
    """After the filling, and after steps, which overwrite some samples."""
    before, later = filled(), transfer.fetch(after(begun(), 2).queue)
    for queue in (before, later):
        features = queue.by_class.features
        assert features.shape == (10, 8, 8) and np.ptp(features, axis=1).min() > 0
        np.testing.assert_allclose(features, expected_features(queue), rtol=1e-4, atol=1e-5)
    assert (before.by_class.features != later.by_class.features).any()


def test_a_resumed_run_has_the_same_bits(tmp_path):
    """Stopped before step 3, with one of three nearest positives left."""
    _, _, program, _ = started()
    half = after(begun(), 3)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(3, program.checkpoint_items(half, 3))
    expected = after(half, 2)
    template = program.checkpoint_items(program.carry, 0)
    with Checkpoints(tmp_path, keep=1, read_only=True) as checkpoints:
        _, items = checkpoints.restore_latest(template, padded=("queue",))
    found = after(carry_of(items), 2)
    jax.tree.map(np.testing.assert_array_equal, *jax.device_get((found, expected)))


@pytest.mark.parametrize("nearest", [0, 3])
def test_the_queue_of_a_checkpoint_has_features_only_where_they_are_used(nearest):
    config, source, *_ = started()
    config = config.copy_and_resolve_references()
    config.train.nearest_positives = nearest
    mesh = meshes.make_mesh(1, 1)
    queue = queues.make_queue(config, source, mesh, shapes=True)
    paths = jax.tree_util.tree_leaves_with_path(queue)
    parts = ("images", "next_slot", "filled")
    rings = {f".{ring}.{part}" for ring in ("by_class", "unconditional") for part in parts}
    rings |= {".by_class.features"} if nearest else set()
    assert {jax.tree_util.keystr(path) for path, _ in paths} == rings
    assert (build.make_nearness(config, source) is None) == (not nearest)


def test_a_queue_moves_to_another_mesh_with_its_features(tmp_path):
    config, source, *_ = started()
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(0, {"queue": begun().queue})
    drawn = []
    for sizes in ((1, 1), (4, 2)):
        mesh = meshes.make_mesh(*sizes)
        template = queues.make_queue(config, source, mesh, shapes=True)
        with Checkpoints(tmp_path, keep=1, read_only=True) as checkpoints:
            _, items = checkpoints.restore_latest({"queue": template}, padded=("queue",))
        near = Nearest(jax.random.key(2), jnp.int32(3))
        labels = np.arange(16) % 10
        drawn.append(sample_queue.draw(items["queue"], jax.random.key(1), labels, 4, nearest=near))
    np.testing.assert_array_equal(*map(np.asarray, drawn))
