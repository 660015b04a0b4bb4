"""What happens beside the steps: lines of metrics, checks for non-finite steps, checkpoints.

The devices never wait for a line: it is fetched and written when the next one is due.
"""

import dataclasses
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from absl import logging
from tqdm import tqdm

from drifting_jax.distributed import transfer
from drifting_jax.errors import TransientError, UserError
from drifting_jax.training.loop import Moment
from drifting_jax.training.program import Carry, Program, Report
from drifting_jax.training.utilisation import Utilisation
from drifting_jax.workdir.checkpoint import Checkpoints
from drifting_jax.workdir.interruption import Interruption
from drifting_jax.workdir.metrics import MetricWriter
from drifting_jax.workdir.stopping import StopAgreement

_SECONDS_BETWEEN_LINES = 15.0  # of plain text, where there is no terminal for a bar


@dataclasses.dataclass(frozen=True)
class RunContext:
    """What a run opens once.

    Attributes:
      writer: of metrics and pictures.
      interruption: SIGTERM and Ctrl-C on this process.
      stops: whether any process was asked to stop.
      is_main_process: whether this is process 0, which alone prints and writes.
    """

    writer: MetricWriter
    interruption: Interruption
    stops: StopAgreement
    is_main_process: bool


class TimedBatches(Iterator[Any]):
    """Hands out batches and adds up the seconds that the loop waited for them."""

    def __init__(self, batches: Iterator[Any]) -> None:
        self.batches = batches
        self.waited = 0.0

    def __next__(self) -> Any:
        asked = time.monotonic()
        batch = next(self.batches)
        self.waited += time.monotonic() - asked
        return batch


@dataclasses.dataclass(frozen=True)
class _Line:
    """A line to be written: its step and report, its time, and the seconds waited for data.

    The time is None until the devices have finished the step.
    """

    step: int
    report: Report | None
    at: float | None
    waited: float


class MetricLines:
    """Writes a line of metrics.jsonl for each step that it is called for, one call late.

    The loop hands out steps long before the devices finish them. A line's time, the bar and the
    time left count steps when they are seen to be finished, which is looked at after each step.
    """

    def __init__(
        self, program: Program, context: RunContext, batches: TimedBatches, bar: tqdm, *, start: int
    ) -> None:
        """Begins at step `start`; `bar` gets the latest numbers.

        Without a terminal, a line of text takes the place of the bar, every few seconds.
        """
        self._program, self._context, self._batches, self._bar = program, context, batches, bar
        self._pending: _Line | None = None
        self._start = start
        self._utilisation = Utilisation(program)
        self._compiling = 0.0
        self._started = self._printed_at = time.monotonic()
        self._last, self._last_at = _Line(start, None, None, 0.0), self._started
        self._running: deque[tuple[int, Any]] = deque()
        self._paced = start, self._started  # the step and the time that the pace counts from

    def after_every_step(self, moment: Moment) -> None:
        """Moves the bar by the steps that the devices have finished since."""
        self._running.append((moment.step, moment.report.skipped))
        is_first = moment.step == self._start + 1
        if is_first:  # the pace counts from the end of the compilation, when the devices begin
            now = time.monotonic()
            self._compiling = now - self._started - self._batches.waited
            self._paced = self._start, now
            self._bar.unpause()
        self._note_finished()
        if is_first and not self._running:  # this device computes before it returns
            self._paced = moment.step, now

    def __call__(self, moment: Moment) -> None:
        """Writes the line before, and keeps this one until the next call."""
        self.flush()
        for leaf in jax.tree.leaves(moment.report):
            leaf.copy_to_host_async()
        at = None if self._running else time.monotonic()
        self._pending = _Line(moment.step, moment.report, at, self._batches.waited)

    def flush(self) -> None:
        """Writes the line that is kept, if there is one."""
        if self._pending is None:
            return
        report = transfer.fetch(self._pending.report)
        self._note_finished()
        line, self._pending = self._pending, None
        now = time.monotonic() if line.at is None else line.at
        scalars = dict(self._program.to_scalars(report.metrics))
        before, self._last = self._last, dataclasses.replace(line, report=None)
        passed, self._last_at = max(now - self._last_at, 1e-9), now
        steps = line.step - before.step
        scalars |= self._utilisation.of(steps, passed)
        if before.step == self._start:
            scalars["compile_seconds"] = self._compiling
        scalars |= {
            "images_per_second": self._program.images_per_step * steps / passed,
            "seconds": now - self._started,
            "skipped": int(report.skipped),
            "waiting_for_data": (line.waited - before.waited) / passed,
        }
        self._context.writer.write_scalars(self._program.name, line.step, scalars)
        self._show(line.step, scalars, now)

    def _note_finished(self) -> None:
        """Looks which steps the devices have finished."""
        now = time.monotonic()
        while self._running and self._running[0][1].is_ready():
            step, _ = self._running.popleft()
            if self._pending is not None and self._pending.step == step:
                self._pending = dataclasses.replace(self._pending, at=now)
            self._bar.update()

    def _show(self, step: int, scalars: Mapping[str, float], now: float) -> None:
        self._bar.set_postfix_str(postfix(scalars), refresh=False)
        if not self._context.is_main_process or not self._bar.disable:
            return
        num_steps = self._program.num_steps
        if step == num_steps or now - self._printed_at > _SECONDS_BETWEEN_LINES:
            words = [f"{self._program.name} {step}/{num_steps}"]
            if (left := self._seconds_left(step, now)) is not None:
                words.append(f"{left:.0f} s left")
            print(", ".join([*words, postfix(scalars)]), file=sys.stderr)
            self._printed_at, self._paced = now, (step, now)

    def _seconds_left(self, step: int, now: float) -> float | None:
        """At the pace since the line printed before, or the compilation; None if unknown."""
        since, at = self._paced
        left = self._program.num_steps - step
        if not left:
            return 0.0
        return (now - at) / (step - since) * left if step > since else None


def postfix(scalars: Mapping[str, float]) -> str:
    """Returns what the progress bar shows: loss, raw drift per temperature, and rates."""
    parts = [f"loss {scalars['loss']:.4g}"]
    drifts = {name: value for name, value in scalars.items() if name.startswith("drift/mean/")}
    if drifts:
        values = " ".join(
            f"{name.removeprefix('drift/mean/')}:{value:.2g}" for name, value in drifts.items()
        )
        parts.append(f"drift² {values}")
    share = f"{scalars['mfu']:.0%}" if "mfu" in scalars else "unknown"
    parts.append(f"{scalars['tflops_per_device']:.3g} TFLOP/s (MFU {share})")
    return ", ".join([*parts, f"{scalars['images_per_second']:.0f} img/s"])


class SkippedSteps:
    """Warns of steps that were not applied, and ends the run if too many in a row were not.

    Like the lines of metrics, it looks at a step when it is called for the next one.
    """

    def __init__(self, program: Program, *, most_in_a_row: int, skipped: int) -> None:
        """`skipped`: steps that were skipped before, of which it does not warn again."""
        self._program, self._most_in_a_row = program, most_in_a_row
        self._skipped = skipped
        self._pending: tuple[int, Report] | None = None

    def __call__(self, moment: Moment) -> None:
        """Looks at the step before, and keeps this one until the next call."""
        if self._pending is not None and self._pending[0] == moment.step:
            return
        self.flush()
        self._pending = moment.step, dataclasses.replace(moment.report, metrics=None)

    def flush(self) -> None:
        """Looks at the step that is kept.

        Raises:
          UserError: too many steps in a row were not finite.
        """
        if self._pending is None:
            return
        (step, report), self._pending = self._pending, None
        report = transfer.fetch(report)
        skipped, in_a_row = int(report.skipped), int(report.skipped_in_a_row)
        if skipped == self._skipped:
            return
        cause = self._program.culprit_name(int(report.culprit))
        logging.warning(
            "%s: %d of the steps up to %d were not finite and not applied; the latest because of "
            "%s",
            self._program.name,
            skipped - self._skipped,
            step,
            cause,
        )
        self._skipped = skipped
        if in_a_row >= self._most_in_a_row:
            raise UserError(
                f"the last {in_a_row} steps up to {step} were not finite because of {cause}; begin "
                "another --workdir with a lower learning rate (--config.encoder.path=<this "
                "workdir> keeps an encoder that is done)"
            )


class Saver:
    """Saves checkpoints: every so many steps, at the end, and before the loop stops."""

    def __init__(
        self,
        program: Program,
        checkpoints: Checkpoints,
        lines: MetricLines,
        skipped: SkippedSteps,
        writer: MetricWriter,
        *,
        save_every: int,
        keep_every: int,
        batches_before: int,
    ) -> None:
        """`batches_before`: batches taken before step 0, in filling the queue."""
        self._program, self._checkpoints = program, checkpoints
        self._lines, self._skipped, self._writer = lines, skipped, writer
        self._save_every, self._keep_every = save_every, keep_every
        self._batches_before = batches_before

    def __call__(self, moment: Moment) -> None:
        """Saves if this step is one of those."""
        step = moment.step
        kept = self._keep_every and step % self._keep_every == 0
        if step % self._save_every == 0 or kept or moment.is_last or moment.stops:
            self.save(step, moment.carry)

    def save(self, step: int, carry: Carry) -> None:
        """Starts a save, after the checks and the lines of metrics of all steps before it.

        So no line is behind the checkpoint, and steps that were not finite are not saved as good
        ones when they end the run.

        Raises:
          UserError: too many steps in a row were not finite.
          TransientError: too many saves in a row have failed.
        """
        self._lines.flush()
        self._skipped.flush()
        self._writer.flush()
        items = self._program.checkpoint_items(carry, self._batches_before + step)
        self._checkpoints.save(step, items)

    def require_saved(self) -> None:
        """Waits for the last save.

        Raises:
          TransientError: it failed.
        """
        if not self._checkpoints.wait():
            raise TransientError(
                "the last checkpoint could not be saved (see the error above): make room and run "
                "the same command again; it goes on from step "
                f"{max(self._checkpoints.steps(), default=0)}"
            )
