"""The loop that every stage of training shares: steps, logs, pictures, saves, and how it stops."""

import dataclasses
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from absl import logging

from drifting_jax.distributed import transfer
from drifting_jax.errors import TransientError, UserError
from drifting_jax.steps.state import TrainState
from drifting_jax.workdir.checkpoint import Checkpoints
from drifting_jax.workdir.interruption import Interruption
from drifting_jax.workdir.metrics import MetricWriter
from drifting_jax.workdir.progress import progress_bar
from drifting_jax.workdir.stopping import StopAgreement

PyTree = Any

_SECONDS_BETWEEN_LINES = 15.0  # of plain text, where there is no terminal for a bar


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of a run and where it leaves what it makes.

    Attributes:
      name: "encoder", "generator" or "toy", as in metrics.jsonl.
      num_steps: steps of the whole stage.
      log_every, save_every: steps between two lines of metrics, between two checkpoints.
      keep_every: steps of which each multiple is saved too; 0 = none.
      images_per_step: what `images_per_second` counts.
      max_skipped_in_a_row: non-finite steps in a row after which the stage stops. It looks at
        each step that is logged, and at every so many steps.
    """

    name: str
    num_steps: int
    log_every: int
    save_every: int
    keep_every: int
    images_per_step: int
    max_skipped_in_a_row: int


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

    def announce(self, stage: str, params: PyTree, start: int) -> None:
        """Says how large the network of a stage is, and where the stage goes on."""
        self.writer.write_parameters(stage, params)
        if start and self.is_main_process:
            print(f"{stage}: goes on from step {start}", flush=True)


def run_stage(
    stage: Stage,
    carry: PyTree,
    *,
    start: int,
    advance: Callable[[PyTree, Any], tuple[PyTree, PyTree]],
    batches: Iterator[Any],
    describe: Callable[[PyTree], Mapping[str, float]],
    state_of: Callable[[PyTree], TrainState],
    culprit: Callable[[int], str],
    items: Callable[[int, PyTree], Mapping[str, PyTree]],
    checkpoints: Checkpoints,
    context: RunContext,
    on_step: Callable[[int, PyTree], None] = lambda step, carry: None,
) -> tuple[PyTree, bool]:
    """Runs a stage from step `start` to its end, or until a signal asks it to stop.

    Args:
      stage: see `Stage`.
      carry: what a step changes; donated to `advance`.
      start: steps already done.
      advance: (carry, batch) -> (carry, metrics); both stay on the devices.
      batches: batches ready for `advance`, the next one being that of step `start`.
      describe: fetched metrics -> scalars of a line of metrics.jsonl; may hold "loss" and names
        that begin with "drift/mean/", which the progress bar shows.
      state_of: the TrainState in a carry, for the count of skipped steps.
      culprit: number in `TrainState.culprit` -> words.
      items: (step, carry) -> trees of a checkpoint.
      checkpoints: where they are saved.
      context: see `RunContext`.
      on_step: called after each step that is logged or saved or not, with the carry: pictures.

    Returns:
      The carry, and whether the stage is complete; if not it was saved and can go on.

    Raises:
      UserError: too many steps in a row were not finite.
    """
    bar = progress_bar(
        stage.num_steps, initial=start, description=stage.name, enabled=context.is_main_process
    )
    started = logged_at = spoke_at = compiled_at = time.monotonic()
    logged_step, skipped, waited = start, int(state_of(carry).skipped), 0.0
    with bar:
        for step in range(start + 1, stage.num_steps + 1):
            asked = time.monotonic()
            try:
                batch = next(batches)
            except Exception:  # data that fails loses no step that is done
                if jax.process_count() > 1:
                    raise
                if step - 1 > start:
                    checkpoints.save(step - 1, items(step - 1, carry))
                    _require_saved(checkpoints)
                if not context.interruption.requested:
                    raise
                return carry, False
            waited += time.monotonic() - asked
            carry, metrics = advance(carry, batch)
            bar.update()
            if step == start + 1:
                compiled_at = time.monotonic()
            last = step == stage.num_steps
            logs = step % stage.log_every == 0 or last
            if logs or step % stage.max_skipped_in_a_row == 0:
                skipped = _check_skipped(stage, step, state_of(carry), skipped, culprit)
            if logs:
                scalars = dict(describe(transfer.fetch(metrics)))
                now = time.monotonic()
                waiting = waited / max(now - logged_at, 1e-9)
                rate = stage.images_per_step * (step - logged_step) / max(now - logged_at, 1e-9)
                scalars |= {"images_per_second": rate, "seconds": now - started, "skipped": skipped}
                scalars["waiting_for_data"] = waiting
                logged_step, logged_at, waited = step, now, 0.0
                context.writer.write_scalars(stage.name, step, scalars)
                bar.set_postfix_str(_postfix(scalars), refresh=False)
                if (
                    context.is_main_process
                    and bar.disable
                    and (last or now - spoke_at > _SECONDS_BETWEEN_LINES)
                ):
                    spoke_at = now
                    pace = (now - compiled_at) / max(step - start - 1, 1)
                    left = pace * (stage.num_steps - step)
                    print(
                        f"{stage.name} {step}/{stage.num_steps}, {left:.0f} s left, "
                        f"{_postfix(scalars)}",
                        file=sys.stderr,
                    )
            on_step(step, carry)
            stop = context.stops(step)
            kept = stage.keep_every and step % stage.keep_every == 0
            if step % stage.save_every == 0 or kept or last or stop:
                context.writer.flush()  # what stands in it must not be behind the checkpoint
                checkpoints.save(step, items(step, carry))
            if stop and not last:
                _require_saved(checkpoints)
                return carry, False
    _require_saved(checkpoints)
    return carry, True


def _require_saved(checkpoints: Checkpoints) -> None:
    if not checkpoints.wait():
        raise TransientError(
            "the last checkpoint could not be saved (see the error above): make room and run the "
            f"same command again; it goes on from step {max(checkpoints.steps(), default=0)}"
        )


def _check_skipped(
    stage: Stage, step: int, state: TrainState, before: int, culprit: Callable[[int], str]
) -> int:
    """Says which steps were not applied, and stops where too many in a row were not."""
    skipped, in_a_row = int(state.skipped), int(state.skipped_in_a_row)
    if skipped == before:
        return skipped
    cause = culprit(int(state.culprit))
    logging.warning(
        "%s: %d of the steps up to %d were not finite and not applied; the latest because of %s",
        stage.name,
        skipped - before,
        step,
        cause,
    )
    if in_a_row >= stage.max_skipped_in_a_row:
        raise UserError(
            f"the last {in_a_row} steps up to {step} were not finite because of {cause}; begin "
            "another --workdir with a lower learning rate (--config.encoder.path=<this workdir> "
            "keeps an encoder that is done)"
        )
    return skipped


def _postfix(scalars: Mapping[str, float]) -> str:
    """loss, raw drift per temperature, images per second: what the progress bar shows."""
    parts = [f"loss {scalars['loss']:.4g}"]
    drifts = {name: value for name, value in scalars.items() if name.startswith("drift/mean/")}
    if drifts:
        values = " ".join(
            f"{name.removeprefix('drift/mean/')}:{value:.2g}" for name, value in drifts.items()
        )
        parts.append(f"drift² {values}")
    return ", ".join([*parts, f"{scalars['images_per_second']:.0f} img/s"])
