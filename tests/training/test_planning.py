"""The plan of a run: on devices whose memory is made up, and with steps compiled in earnest."""

import dataclasses
import types

import jax
import numpy as np
import pytest
from tiny_run import config

from drifting_jax.compiler import targets
from drifting_jax.compiler.gpus import GPUS
from drifting_jax.config.stored import with_values
from drifting_jax.data.sources import data_spec
from drifting_jax.distributed import meshes
from drifting_jax.training import activations, compiled_report, dry_run, planning
from drifting_jax.training.compiled_report import CompiledStep
from drifting_jax.training.loss_memory import loss_bytes
from drifting_jax.training.planning import plan_lines
from drifting_jax.training.remedies import remedy

MIB = 2**20
KNOWN = {"encoder__path": "runs/another", "model__remat": "block", "encoder__remat": "block"}
# A single row, whose loss microbatches do not divide.
ROW = {
    "queue__allow_repeats": True,
    "train__labels_per_step": 1,
    "train__generated_per_label": 64,
    "train__positives_per_label": 64,
    "train__unconditional_per_label": 0,
}


@pytest.fixture(scope="module")
def steps():
    """Generator steps of one and of four microbatches, and an encoder's: {name: (config, it)}."""
    configs = {
        "one": config(encoder__path="runs/another"),
        "four": config(**KNOWN, train__microbatches=4),
        "encoder": config(task="encoder"),
        "parts": config(**KNOWN, **ROW, train__microbatches=4),
        "row": config(**KNOWN, **ROW, train__microbatches=1),
    }
    mesh = meshes.make_mesh(1, devices=jax.devices()[:1])
    return {name: (found, dry_run.program(found, mesh)) for name, found in configs.items()}


def compiled(found, *, temporary, room):
    """A step that takes so much beside its arguments, on a device with `room` of that."""
    held = meshes.bytes_per_device((found.carry, found.frozen, found.batch))
    return CompiledStep(
        device=jax.devices()[0],
        capacity=int(held + room * temporary),
        held=held,
        temporary=int(temporary),
        peak=int(held + temporary),
        seconds=0.5,
    )


def planned(steps, name, step, monkeypatch, *, temporary=None, **options):
    """The lines of a plan; `temporary` says what a changed config would need."""
    found_config, found = steps[name]
    tried = []

    def assemble(changed):
        return types.SimpleNamespace(config=changed)

    def compile_step(changed, mesh):
        assert temporary is not None, "nothing had to be compiled"
        tried.append(changed.config)
        now = int(temporary(changed.config))
        peak = step.held + now
        return dataclasses.replace(step, temporary=now, peak=peak, seconds=0.6, refusal="")

    monkeypatch.setattr(planning, "compile_step", compile_step)
    lines = plan_lines(found_config, found, step, assemble=assemble, **options)
    return lines, tried


def test_a_run_that_fits(steps, monkeypatch):
    step = compiled(steps["one"][1], temporary=64 * MIB, room=1.5)
    lines, _ = planned(steps, "one", step, monkeypatch, price_per_hour=7200)
    assert lines[0] == "plan for 1 x cpu, from compiled programs; no step was run:"
    assert [x.split() for x in lines[1:2]] == [["generator", "fits:", "0.06", "of", "0.1", "GiB"]]
    # 100 steps of half a second: 50 s, at two units a second.
    assert "about 50.0 s: 100 steps of 500.0 ms" in lines[2]
    assert "not known" in lines[3] and "about 100.00 at 7200 an hour" in lines[4]


def test_more_microbatches_come_first(steps, monkeypatch):
    """The step's temporaries are in proportion to the samples at once, so two parts fit in 0.7."""
    step = compiled(steps["one"][1], temporary=64 * MIB, room=0.7)
    lines, tried = planned(
        steps, "one", step, monkeypatch, temporary=lambda x: 64 * MIB / x.train.microbatches
    )
    assert "does NOT fit" in lines[1] and "(compiled)" in lines[1] and "method" not in lines[1]
    assert lines[2].strip() == "--config.train.microbatches=2"
    assert [x.train.microbatches for x in tried] == [2]
    assert "100 steps of 600.0 ms" in lines[3]


def test_an_estimate_that_was_too_low_is_corrected(steps, monkeypatch):
    step = compiled(steps["one"][1], temporary=64 * MIB, room=0.7)
    lines, tried = planned(
        steps, "one", step, monkeypatch, temporary=lambda x: 96 * MIB / x.train.microbatches
    )
    assert [x.train.microbatches for x in tried] == [2, 4]
    assert lines[2].strip() == "--config.train.microbatches=4"


def loss_of(steps, name):
    """Bytes of the loss of a step, as `loss_bytes` estimates them."""
    found_config, found = steps[name]
    spec = data_spec(found_config.data)
    features = activations.feature_shapes(found_config, spec, found.frozen)
    return loss_bytes(found_config, found.mesh, features)


def test_more_parts_of_a_row_do_not_help_if_its_loss_is_too_large(steps, monkeypatch):
    """The peak is that of the loss of all pairs: nothing that keeps the numbers makes it smaller.

    Half of the samples have a quarter of the pairs.
    """
    loss = loss_of(steps, "parts")
    step = compiled(steps["parts"][1], temporary=loss, room=0.7)
    lines, tried = planned(steps, "parts", step, monkeypatch, temporary=lambda _: 0.4 * loss)
    assert [x.train.generated_per_label for x in tried] == [32]
    assert "another method: its numbers change" in lines[3]


def test_more_parts_of_a_row_help_where_its_networks_take_most(steps, monkeypatch):
    loss = loss_of(steps, "parts")
    step = compiled(steps["parts"][1], temporary=4 * loss, room=0.6)
    lines, tried = planned(
        steps, "parts", step, monkeypatch, temporary=lambda x: 16 * loss / x.train.microbatches
    )
    assert [x.train.microbatches for x in tried] == [8]
    assert lines[2].strip() == "--config.train.microbatches=8"


def test_the_loss_of_a_row_in_one_microbatch_stays_in_more(steps, monkeypatch):
    """Three quarters are the samples', so two parts leave five eighths, and four less than half."""
    loss = loss_of(steps, "row")
    step = compiled(steps["row"][1], temporary=4 * loss, room=0.3)
    lines, tried = planned(
        steps,
        "row",
        step,
        monkeypatch,
        temporary=lambda x: max(loss, 3 * loss / x.train.microbatches),
    )
    assert [x.train.microbatches for x in tried] == [4]
    assert lines[2].strip() == "--config.train.microbatches=4"


def test_maps_and_moments_need_no_compilation(steps, monkeypatch):
    """Four microbatches are all that four rows allow, and their blocks keep nothing."""
    found_config, found = steps["four"]
    assert found.keep_maps == "yes"
    step = compiled(found, temporary=8 * MIB, room=0.999)
    lines, _ = planned(steps, "four", step, monkeypatch)
    assert lines[2].strip() == "--config.train.keep_maps=no" and "by the sizes" in lines[1]
    assert lines[3].endswith("without the change")

    elsewhere = with_values(found_config, {"train.keep_maps": "no"})
    without_maps = dataclasses.replace(found, keep_maps="no")
    change = remedy(elsewhere, without_maps, step, compile_with=pytest.fail)
    assert change.values == {"optim.moments_on_host": True}
    parameters = dry_run.parameter_counts(found)["generator"]
    assert 0 <= step.peak - change.peak - 8 * parameters < 100


def test_a_smaller_set_is_another_method(steps, monkeypatch):
    found = steps["four"][1]
    step = compiled(found, temporary=64 * MIB, room=0.6)
    lines, tried = planned(
        steps, "four", step, monkeypatch, temporary=lambda x: 16 * MIB * x.train.generated_per_label
    )
    assert "--config.train.generated_per_label=2 --config.train.positives_per_label=2" in lines[2]
    assert "another method: its numbers change" in lines[3]
    assert len(tried) == 1


def test_a_device_that_is_too_small_for_the_state(steps, monkeypatch):
    found = steps["four"][1]
    step = dataclasses.replace(compiled(found, temporary=MIB, room=1), capacity=1000)
    lines, _ = planned(steps, "four", step, monkeypatch)
    assert "does NOT fit" in lines[1] and "take a larger device" in lines[2]


def test_the_encoder_of_a_run_is_planned_too(steps, monkeypatch):
    found_config, found = steps["encoder"]
    step = compiled(found, temporary=64 * MIB, room=0.7)
    fitting = dataclasses.replace(step, peak=step.capacity, seconds=0.1)
    run = with_values(found_config, {"task": "generator"})

    def assemble(changed):
        return found if changed.encoder.train.microbatches == 1 else changed

    def compile_step(changed, mesh):
        if changed is found:
            return step
        assert changed.task == "encoder"
        return dataclasses.replace(fitting, seconds=2 / changed.encoder.train.microbatches)

    monkeypatch.setattr(planning, "compile_step", compile_step)
    lines = plan_lines(run, steps["one"][1], fitting, assemble=assemble)
    assert [line.split()[0] for line in lines[1:4]] == [
        "encoder",
        "--config.encoder.train.microbatches=2",
        "generator",
    ]
    # 48 steps of a second, 100 of a tenth.
    assert [x.partition("about ")[2] for x in lines[4:7]] == [
        "48.0 s: 48 steps of 1.0 s",
        "10.0 s: 100 steps of 100.0 ms",
        "58.0 s",
    ]


def test_a_gpu_may_be_given_more_of_its_memory(steps, monkeypatch):
    """Of 23.6 GiB JAX takes 17.7; 0.92 of them, less a tenth, are 19.6."""
    gpu = types.SimpleNamespace(device_kind=GPUS["rtx4090"].kind, platform="gpu")
    found = steps["four"][1]
    step = dataclasses.replace(
        compiled(found, temporary=0, room=1),
        device=gpu,
        capacity=int(0.75 * 25386352640),
        peak=19 * 2**30,
        seconds=36.0,
    )
    lines, _ = planned(steps, "four", step, monkeypatch)
    assert lines[2].strip() == "XLA_PYTHON_CLIENT_MEM_FRACTION=0.92"
    # 100 steps of 36 s are an hour.
    assert "0.450 kWh" in lines[4] and "450 W" in lines[4] and "at most" in lines[4]
    close = dataclasses.replace(step, peak=17 * 2**30)
    lines, _ = planned(steps, "four", close, monkeypatch)
    assert "fits: 17.00 of 17.7 GiB; a tenth should be free" in lines[1]
    assert lines[2].endswith("XLA_PYTHON_CLIENT_MEM_FRACTION=0.92")


def test_a_tpu_that_refuses_a_program_says_how_much_it_needs(steps, monkeypatch):
    def fails(device, lowered):
        raise jax.errors.JaxRuntimeError(
            "RESOURCE_EXHAUSTED: Ran out of memory. Used 17.50G of 15.75G hbm. Exceeded"
        )

    monkeypatch.setattr(compiled_report, "compile_for", fails)
    tpu = types.SimpleNamespace(device_kind="TPU v5 lite", platform="tpu", process_index=0)
    mesh = types.SimpleNamespace(devices=np.array([tpu]), size=1)
    found = dataclasses.replace(steps["one"][1], step=types.SimpleNamespace(lower=lambda *_: None))
    step = compiled_report.compile_step(found, mesh)
    assert (step.peak, step.capacity, step.fits) == (17.5 * 2**30, 16 * 2**30, False)
    lines, _ = planned(steps, "one", step, monkeypatch, temporary=lambda _: MIB)
    assert "17.50 of 16.0 GiB" in lines[1] and "--config.train.microbatches=2" in lines[2]


@pytest.mark.slow
def test_the_named_change_makes_a_step_fit(monkeypatch):
    """A device between the peaks of one and of two microbatches, both compiled."""
    changes = {"encoder__path": "runs/another", "mesh__data": 1, "train__generated_per_label": 32}
    mesh = meshes.make_mesh(1, devices=jax.devices()[:1])

    def peak(**more):
        found = dry_run.program(config(**changes, **more), mesh)
        return compiled_report.compile_step(found, mesh).peak

    capacity = int(0.8 * peak())
    monkeypatch.setattr(targets, "memory_of", lambda _: capacity)
    told = dry_run.dry_run(config(**changes))
    flag = told.partition("this makes it fit")[2].split("\n")[1].strip()
    assert flag.startswith("--config.train.microbatches=")
    assert peak(train__microbatches=int(flag.partition("=")[2])) <= capacity
