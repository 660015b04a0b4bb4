"""The loop of a stage with a step that only counts: when it logs, saves, stops and gives up."""

import dataclasses
import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from drifting_jax.errors import UserError
from drifting_jax.training.loop import RunContext, Stage, run_stage
from drifting_jax.workdir.stopping import StopAgreement

STAGE = Stage(
    name="encoder",
    num_steps=10,
    log_every=4,
    save_every=3,
    keep_every=0,
    images_per_step=8,
    max_skipped_in_a_row=3,
)


class Checkpoints:
    """Keeps what it is given; a full disk keeps nothing."""

    def __init__(self, *, full: bool = False):
        self.saved, self.full = {}, full

    def save(self, step, items):
        assert step not in self.saved
        self.saved |= {} if self.full else {step: items}

    def wait(self):
        return not self.full

    def steps(self):
        return list(self.saved)


def run(*, start=0, skipped=(), stop_at=None, full=False, batches=None, **changes):
    """Runs the stage on a carry (steps done, skipped, in a row), with batches numbered from 0."""
    lines, interruption = [], SimpleNamespace(requested=False)
    checkpoints, seen = Checkpoints(full=full), []

    def advance(carry, batch):
        done, total, in_a_row = carry
        assert batch == done
        if done + 1 in skipped:
            return (done + 1, total + 1, in_a_row + 1), {"loss": np.float32(np.nan)}
        return (done + 1, total, 0), {"loss": np.float32(done)}

    def on_step(step, carry):
        assert carry[0] == step
        seen.append(step)
        interruption.requested |= step == stop_at

    writer = SimpleNamespace(write_scalars=lambda *line: lines.append(line), flush=lambda: None)
    result = SimpleNamespace(lines=lines, saved=checkpoints.saved, seen=seen)
    result.carry, result.complete = run_stage(
        dataclasses.replace(STAGE, **changes),
        (start, 0, 0),
        start=start,
        advance=advance,
        batches=batches or itertools.count(start),
        describe=lambda metrics: {"loss": float(metrics["loss"])},
        state_of=lambda carry: SimpleNamespace(
            skipped=carry[1], skipped_in_a_row=carry[2], culprit=7
        ),
        culprit=lambda number: f"culprit {number}",
        items=lambda step, carry: {"state": carry},
        checkpoints=checkpoints,
        context=RunContext(
            writer, interruption, StopAgreement(interruption), is_main_process=False
        ),
        on_step=on_step,
    )
    return result


def test_a_whole_stage():
    found = run()
    assert found.complete and found.carry == (10, 0, 0)
    assert found.seen == list(range(1, 11))
    assert {step: items["state"][0] for step, items in found.saved.items()} == {
        step: step for step in (3, 6, 9, 10)
    }
    assert [line[:2] for line in found.lines] == [("encoder", step) for step in (4, 8, 10)]
    assert [line[2]["loss"] for line in found.lines] == [3.0, 7.0, 9.0]
    assert all(line[2]["images_per_second"] > 0 for line in found.lines)


def test_steps_that_are_kept_are_saved():
    assert list(run(keep_every=4).saved) == [3, 4, 6, 8, 9, 10]


def test_a_stage_that_is_resumed():
    found = run(start=7)
    assert found.complete and found.seen == [8, 9, 10]
    assert list(found.saved) == [9, 10]
    assert run(start=10).seen == []


@pytest.mark.parametrize("stop_at, saved", [(5, [3, 5]), (6, [3, 6])])
def test_a_stop_is_saved_after_the_step_at_hand(stop_at, saved):
    found = run(stop_at=stop_at)
    assert not found.complete and found.seen[-1] == stop_at
    assert list(found.saved) == saved


def test_a_stop_in_the_last_step_finds_the_stage_complete():
    found = run(stop_at=10)
    assert found.complete and list(found.saved) == [3, 6, 9, 10]


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
    assert not found.complete and list(found.saved) == [3, 5]


def test_skipped_steps_are_counted_and_told(caplog):
    found = run(skipped={2, 3, 6})
    assert found.complete
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
