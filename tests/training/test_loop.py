"""The loop of a stage with a step that only counts: when it logs, saves, stops and gives up."""

import itertools
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drifting_jax.config import base_config, resolve
from drifting_jax.distributed import meshes, transfer
from drifting_jax.errors import UserError
from drifting_jax.training import build, loop, programs, stage
from drifting_jax.training.hooks import RunContext
from drifting_jax.training.loop import Hook
from drifting_jax.training.program import Carry, Program, Report
from drifting_jax.workdir.stopping import StopAgreement


def make_program(step):
    """Ten steps of a program that only counts."""
    step.trace = lambda *_: jax.jit(lambda: 0).trace()
    return Program(
        name="encoder",
        mesh=meshes.make_mesh(1),
        init=None,
        make_queue=None,
        carry=None,
        frozen={},
        batch={},
        step=step,
        to_scalars=lambda metrics: {"loss": float(metrics["loss"])},
        culprit_name=lambda number: f"culprit {number}",
        checkpoint_items=lambda carry, batches: {"state": carry.state, "batches": batches},
        num_steps=10,
        images_per_step=8,
    )


class Checkpoints:
    """Keeps what it is given; a full disk keeps nothing."""

    def __init__(self, *, full: bool = False):
        self.saved, self.full, self.events = {}, full, []

    def save(self, step, items):
        assert step not in self.saved
        self.events.append(("save", step))
        self.saved |= {} if self.full else {step: items}

    def wait(self):
        return not self.full

    def steps(self):
        return list(self.saved)


def run(*, start=0, skipped=(), stop_at=None, full=False, batches=None, keep_every=0, **outside):
    """Runs the stage with batches numbered from 0; its state counts steps done and skipped."""
    lines, interruption = outside.get("lines", []), SimpleNamespace(requested=False)
    checkpoints, seen = Checkpoints(full=full), []
    checkpoints.saved = outside.get("saved", {})

    def step(carry, frozen, batch):
        done, total, in_a_row = (int(x) for x in carry.state.counts)
        outside.get("on_step", lambda: None)()
        assert batch == done and frozen == {}
        skips = done + 1 in skipped
        counts = (done + 1, total + skips, (in_a_row + 1) * skips)
        loss = jnp.float32(np.nan if skips else done)
        report = Report({"loss": loss}, *map(jnp.int32, (counts[1], counts[2], 7)))
        report = outside.get("late", jax.block_until_ready)(report)
        return Carry(SimpleNamespace(counts=counts, skipped=counts[1])), report

    def look(moment):
        assert moment.carry.state.counts[0] == moment.step
        seen.append(moment.step)
        checkpoints.events.append(("step", moment.step))
        interruption.requested |= moment.step == stop_at

    config = base_config("encoder")
    config.log_every = 4
    config.train.keep_every = keep_every
    config.train.max_skipped_in_a_row = outside.get("most_skipped", 3)

    def write_scalars(*line):
        lines.append(line)
        checkpoints.events.append(("line", line[1]))

    writer = SimpleNamespace(write_scalars=write_scalars, flush=lambda: None)
    carry = stage.run_loop(
        stage.Stage(
            program=make_program(step),
            folder=Path("nowhere"),
            batch_size=8,
            save_every=3,
            hooks=[Hook(1, look)],
        ),
        config,
        Carry(SimpleNamespace(counts=(start, 0, 0), skipped=0)),
        (start, start),
        batches or itertools.count(start),
        checkpoints,
        RunContext(
            writer, interruption, StopAgreement(interruption), is_main_process="late" in outside
        ),
    )
    return SimpleNamespace(
        lines=lines, saved=checkpoints.saved, seen=seen, carry=carry, events=checkpoints.events
    )


def test_a_whole_stage():
    found = run()
    assert found.carry.state.counts == (10, 0, 0)
    assert found.seen == list(range(1, 11))
    assert {step: items["state"].counts[0] for step, items in found.saved.items()} == {
        step: step for step in (3, 6, 9, 10)
    }
    assert [line[:2] for line in found.lines] == [("encoder", step) for step in (4, 8, 10)]
    assert [line[2]["loss"] for line in found.lines] == [3.0, 7.0, 9.0]
    assert all(line[2]["images_per_second"] > 0 for line in found.lines)


def test_steps_that_are_kept_are_saved():
    assert list(run(keep_every=4).saved) == [3, 4, 6, 8, 9, 10]


def test_a_stage_that_is_resumed():
    found = run(start=7)
    assert found.carry and found.seen == [8, 9, 10]
    assert list(found.saved) == [9, 10]
    assert run(start=10).seen == []


@pytest.mark.parametrize("stop_at, saved", [(5, [3, 5]), (6, [3, 6])])
def test_a_stop_is_saved_after_the_step_at_hand(stop_at, saved):
    found = run(stop_at=stop_at)
    assert found.carry is None and found.seen[-1] == stop_at
    assert list(found.saved) == saved


def test_a_stop_in_the_last_step_finds_the_stage_complete():
    found = run(stop_at=10)
    assert found.carry and list(found.saved) == [3, 6, 9, 10]


def test_batches_that_end_with_the_signal_do_not_take_the_save_with_them():
    class Ended:
        """Hands out five batches, then fails as a reader does whose workers were killed."""

        def __init__(self):
            self.next = iter(range(5))

        def __next__(self):
            for batch in self.next:
                return batch
            raise RuntimeError("a worker was terminated")

    with pytest.raises(RuntimeError, match="a worker was terminated"):
        run(batches=Ended())
    found = run(batches=Ended(), stop_at=5)
    assert found.carry is None and list(found.saved) == [3, 5]


def test_skipped_steps_are_counted_and_told(caplog):
    found = run(skipped={2, 3, 6})
    assert found.carry
    assert [line[2]["skipped"] for line in found.lines] == [2, 3, 3]
    told = [r.getMessage() for r in caplog.records if "not finite" in r.getMessage()]
    assert len(told) == 2 and "2 of the steps up to 3" in told[0] and "culprit 7" in told[0]


def test_too_many_skipped_steps_in_a_row_end_the_run():
    with pytest.raises(UserError, match=r"the last 3 steps up to 8 were not finite .* culprit 7"):
        run(skipped={6, 7, 8, 9})


@pytest.mark.parametrize("stop_at", [None, 5])
def test_a_run_whose_end_could_not_be_saved_does_not_call_itself_done(stop_at):
    with pytest.raises(UserError, match=r"could not be saved .* goes on from step 0"):
        run(stop_at=stop_at, full=True)


def test_a_run_that_fails_loses_no_line():
    lines = []
    with pytest.raises(UserError, match="were not finite"):
        run(skipped={6, 7, 8, 9}, lines=lines)
    assert [line[1] for line in lines] == [4, 8]


def test_a_line_is_written_when_the_next_one_is_due_or_before_a_checkpoint():
    """So the devices never wait for a line, and no line is behind a checkpoint."""
    events = [event for event in run().events if event[0] != "step" or event[1] in (5, 8)]
    assert events == [
        ("save", 3),
        ("step", 5),
        ("line", 4),  # before the checkpoint, and not at once
        ("save", 6),
        ("step", 8),
        ("line", 8),
        ("save", 9),
        ("line", 10),
        ("save", 10),
    ]


def test_the_last_steps_are_checked_before_they_are_saved():
    saved = {}
    with pytest.raises(UserError, match="the last 3 steps up to 10 were not finite"):
        run(skipped={8, 9, 10}, saved=saved)
    assert list(saved) == [3, 6, 9]


def test_rates_are_those_of_the_steps_between_two_lines(monkeypatch):
    """Whether a line is written at once, one line late, or before a save."""
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    def batches():
        for number in range(10):
            clock[0] += 1.0  # waiting for data
            yield number

    lines = run(batches=batches(), on_step=lambda: clock.__setitem__(0, clock[0] + 3.0)).lines
    assert [line[2]["images_per_second"] for line in lines] == [8 / 4] * 3
    assert [line[2]["waiting_for_data"] for line in lines] == [1 / 4] * 3
    assert [line[2]["seconds"] for line in lines] == [16.0, 32.0, 40.0]


def test_the_loop_moves_nothing_between_host_and_devices():
    """Steps and their hooks run under a transfer guard, which a host array would trip."""
    config = base_config("toy")
    config.train.num_steps, config.optim.warmup_steps = 6, 1
    config.train.positives = config.train.generated = 8
    config.model.widths = (8,)
    config = resolve(config)
    program = programs.toy_program(config, build.make_mesh(config))
    rows = {name: np.zeros(x.shape, x.dtype) for name, x in program.batch.items()}
    batch = transfer.global_batch(program.mesh, rows)
    carry, _ = program.step(program.first_carry(), {}, batch)
    seen = []
    hooks = [Hook(1, lambda moment: seen.append(moment.step))]
    with jax.transfer_guard("disallow"):
        carry, complete = loop.run(program, carry, {}, itertools.repeat(batch), hooks, start=1)
        with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
            loop.run(program, carry, {}, itertools.repeat(rows), hooks, start=5)
    assert complete and seen == [2, 3, 4, 5, 6] and int(carry.state.step) == 6


class Late:
    """An array that devices finish at a time of a clock; to fetch it waits until then."""

    def __init__(self, value, clock, at):
        self.value, self.clock, self.at = value, clock, at

    def is_ready(self):
        return self.clock[0] >= self.at

    def copy_to_host_async(self):
        pass

    def __array__(self, dtype=None, copy=None):
        self.clock[0] = max(self.clock[0], self.at)
        return np.asarray(self.value, dtype)


def test_the_time_left_on_a_device_that_computes_before_it_returns(monkeypatch, capfd):
    """A step takes 20 s, the first one 60, which says nothing of the others."""
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    def late(report):
        clock[0] += 20.0 if clock[0] else 60.0
        return jax.block_until_ready(report)

    run(start=1, late=late)
    found = [x.split(", ")[:2] for x in capfd.readouterr().err.splitlines() if "encoder" in x]
    assert found == [
        ["encoder 4/10", "120 s left"], ["encoder 8/10", "40 s left"], ["encoder 10/10", "0 s left"]
    ]  # fmt: skip


@pytest.mark.parametrize("ahead", [1, 3, 6])
def test_the_time_left_is_that_of_the_devices_without_the_compilation(monkeypatch, capfd, ahead):
    """A step compiles for 40 s and takes the devices 20 s; the host hands out `ahead` at once."""
    clock, ends = [0.0], []
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    def late(report):
        if not ends:
            clock[0] += 40.0
        elif len(ends) >= ahead:
            clock[0] = max(clock[0], ends[-ahead])  # no more steps may wait
        ends.append(max(clock[0], ends[-1] if ends else 0.0) + 20.0)
        return jax.tree.map(lambda leaf: Late(leaf, clock, ends[-1]), report)

    # Without a picture of the first batch, and without other looks at a step.
    lines = run(start=1, late=late, most_skipped=100).lines
    first, second, last = (
        line.split(", ")[:2] for line in capfd.readouterr().err.splitlines() if "encoder" in line
    )
    assert first == ["encoder 4/10", "120 s left"]
    assert second == ["encoder 8/10", "40 s left"]
    assert last == ["encoder 10/10", "0 s left"]
    assert [line[2]["seconds"] for line in lines] == [100.0, 180.0, 220.0]
    assert [line[2]["images_per_second"] for line in lines[1:]] == [8 / 20] * 2
    assert lines[0][2]["compile_seconds"] == 40.0
