"""What moves between the devices in a step: drawn samples, parameters, sums; never the queue."""

import math

import jax
import pytest
import tiny_config

from drifting_jax.compiler import hlo
from drifting_jax.compiler.collectives import collectives
from drifting_jax.compiler.targets import devices_of
from drifting_jax.config import resolve
from drifting_jax.config.defaults import FSDP_RULES
from drifting_jax.training import build, dry_run

SIDE, PER_CLASS, SAMPLES, PUSHED = 8, 8192, 8, 64


def config(microbatches, *, rows=16):
    """A queue far larger than all else, parameters split over all devices."""
    found = tiny_config.get_config()
    found.mesh.data, found.mesh.fsdp, found.mesh.rules = 1, -1, FSDP_RULES
    found.queue.per_class, found.queue.unconditional = PER_CLASS, 64
    found.model.scan = True
    found.train.labels_per_step = rows
    found.train.generated_per_label = found.train.positives_per_label = SAMPLES
    found.train.unconditional_per_label = SAMPLES
    found.train.microbatches = microbatches
    found.queue.push_per_step = found.encoder.train.batch_size = PUSHED
    return found


def check(found, devices=None):
    mesh = build.make_mesh(found, devices=devices)
    program = dry_run.program(resolve(found), mesh)
    moved = collectives(hlo.parse(program.lower().compile().as_text()), mesh.size)
    state, queue = program.carry.state, program.carry.queue
    parameters = [4 * math.prod(x.shape) for x in jax.tree.leaves(state.params)]
    frozen = [4 * math.prod(x.shape) for x in jax.tree.leaves(program.frozen)]
    rows = found.train.labels_per_step // program.microbatches
    drawn, pushed = (n * SIDE * SIDE for n in (rows * SAMPLES, PUSHED))
    ring = math.prod(queue.by_class.images.shape)
    assert ring > 20 * max(sum(parameters), drawn)
    # Integers: samples (TPUs move bytes as words, padded to tiles), labels and slots.
    wide = 32 if devices else 1
    integers = [m.size for m in moved if m.types <= {"u8", "u32", "s32", "s8"}]
    assert integers and max(integers) <= wide * max(drawn, pushed)
    gathered = [m for m in moved if m.name == "all-gather"]
    for one in gathered:  # parameters, or the pushed batch
        allowed = max(*parameters, *frozen) if one.types & {"f32", "bf16"} else wide * pushed
        assert one.size <= allowed, one
    for one in moved:  # gradients, perhaps all at once, with the statistics
        assert one.size <= sum(parameters) + 2**15 + wide * drawn, one
    return moved


@pytest.mark.slow
def test_a_step_with_nearest_positives_moves_slots_and_no_features():
    found = config(2)
    found.train.nearest_positives = SAMPLES // 2
    check(found)


@pytest.mark.slow
@pytest.mark.parametrize("microbatches", [1, 2])
def test_a_step_moves_drawn_samples_parameters_and_sums(microbatches):
    moved = check(config(microbatches))
    assert {"all-gather", "all-reduce"} <= {one.name for one in moved}


@pytest.mark.slow
@pytest.mark.parametrize("topology", ["v5e:8x8"])
def test_the_program_of_a_tpu_slice_does_so_too(topology):
    pytest.importorskip("libtpu")
    check(config(1, rows=64), devices_of(topology))
