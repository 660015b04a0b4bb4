"""One stage of a run: resumed or begun, looped, saved. Encoder, generator and toy share it."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from drifting_jax.config import ConfigDict
from drifting_jax.data.sources import Source
from drifting_jax.distributed import meshes
from drifting_jax.steps.sample_queue import SampleQueue
from drifting_jax.training import loop
from drifting_jax.training.dataset import Batch, EveryStep
from drifting_jax.training.device_batches import (
    GlobalBatches,
    first_batch_picture,
    make_batches,
)
from drifting_jax.training.hooks import (
    MetricLines,
    RunContext,
    Saver,
    SkippedSteps,
    TimedBatches,
)
from drifting_jax.training.loop import BatchError, Hook, Moment
from drifting_jax.training.profiling import FOLDER, Profiler
from drifting_jax.training.program import Carry, Program, carry_of
from drifting_jax.workdir.checkpoint import Checkpoints
from drifting_jax.workdir.image_files import image_grid
from drifting_jax.workdir.progress import progress_bar

PyTree = Any
_KEPT = {"yes": ", whose maps are kept", "host": ", whose maps the host keeps", "no": ""}
_LARGE_SHOWN = 40  # parameters, at the start of a run
_PICTURE_IMAGES, _PICTURE_COLUMNS, _LEAST_GRID_PIXELS = 64, 8, 400

Fill = Callable[[SampleQueue, GlobalBatches], tuple[SampleQueue, int] | None]


@dataclasses.dataclass(frozen=True)
class Stage:
    """A program with what it trains on, and what happens beside its steps.

    Attributes:
      program: the step.
      frozen: variables of the frozen networks; empty without any.
      folder: of its checkpoints.
      batch_size: records of a batch, of all processes together.
      crop: of its images, "center" or "random_resized".
      save_every: steps between two checkpoints.
      hooks: called before the stage's own stop and save: pictures, measurements.
      names: stages of metrics.jsonl that its hooks write, cut back to the checkpoint on a resume.
      fill: fills the queue before the first step: (queue, batches) -> queue and the number of
        batches taken, or None if it was stopped. None for a program without rings to fill.
      dataset: the batch of every step, in place of batches of `batch_size` records.
      begin: called with the carry before the first step.
      params: on the host, that the training begins with; None for random ones.
    """

    program: Program
    folder: Path
    batch_size: int
    save_every: int
    crop: str = "center"
    frozen: PyTree = dataclasses.field(default_factory=dict)
    hooks: Sequence[Hook] = ()
    names: tuple[str, ...] = ()
    fill: Fill | None = None
    dataset: Batch | None = None
    begin: Callable[[Carry], None] | None = None
    params: PyTree | None = None


def train(
    stage: Stage, config: ConfigDict, source: Source, *, workdir: Path, context: RunContext
) -> Carry | None:
    """Trains from wherever the stage stands.

    Args:
      stage: what is trained.
      config: of the run; says how images are augmented, what is logged and kept.
      source: of the batches.
      workdir: of the run.
      context: writer, signals and stops.

    Returns:
      The last carry; None if a signal stopped the training, which was saved and can go on.

    Raises:
      UserError: the data fails, or too many steps in a row were not finite.
      TransientError: the last checkpoint could not be saved.
    """
    program, kept = stage.program, config.train
    with Checkpoints(stage.folder, keep=kept.keep, keep_every=kept.keep_every) as checkpoints:
        start, taken, carry = start_or_resume(program, checkpoints, params=stage.params)
        for name in (program.name, *stage.names):
            context.writer.truncate(name, start)
        if start >= program.num_steps:
            return carry
        _announce(program, context, start)
        with _batches(stage, config, source, workdir, taken) as batches:
            if stage.fill is not None and not start:
                # The program of a stage with `fill` has rings, and batches for them.
                assert isinstance(carry.queue, SampleQueue) and isinstance(batches, GlobalBatches)
                filled = stage.fill(carry.queue, batches)
                if filled is None:
                    return None
                queue, taken = filled
                carry = dataclasses.replace(carry, queue=queue)
            if program.prepare is not None and not start:
                carry = program.prepare(carry, stage.frozen, stage.dataset)
            if stage.begin is not None and not start:
                stage.begin(carry)
            position = start, taken
            return run_loop(stage, config, carry, position, batches, checkpoints, context)


def _batches(
    stage: Stage, config: ConfigDict, source: Source, workdir: Path, taken: int
) -> GlobalBatches | EveryStep:
    """Returns the batches of a stage after those that were taken."""
    if stage.dataset is not None:
        return EveryStep(stage.dataset)
    return make_batches(
        config,
        source,
        stage.program.mesh,
        batch_size=stage.batch_size,
        start=taken,
        crop=stage.crop,
        log=workdir,
        stage=stage.program.name,
    )


def start_or_resume(
    program: Program, checkpoints: Checkpoints, *, params: PyTree | None = None
) -> tuple[int, int, Carry]:
    """Returns the steps done, the batches taken and the carry: the newest checkpoint's, if any.

    Without a checkpoint the carry is the first one, of `params` or random.
    """
    template = program.checkpoint_items(program.carry, 0)
    restored = checkpoints.restore_latest(template, padded=("queue",))
    if restored is None:
        return 0, 0, program.first_carry(params)
    step, items = restored
    taken = int(items["position"]["batches"]) if "position" in items else step
    return step, taken, carry_of(items)


def _announce(program: Program, context: RunContext, start: int) -> None:
    """Prints how large the network is, how it is split, and where the training goes on."""
    params = program.carry.state.params
    context.writer.write_parameters(program.name, params)
    if not context.is_main_process:
        return
    lines = meshes.large_parameters(params, jax.tree.map(lambda x: x.sharding, params))
    print(*(f"  {line}" for line in lines[:_LARGE_SHOWN]), sep="\n", end="\n" if lines else "")
    if len(lines) > _LARGE_SHOWN:
        print(f"  … and {len(lines) - _LARGE_SHOWN} more of at least {meshes.LARGE:,} numbers")
    if program.microbatches > 1:
        kept = _KEPT[program.keep_maps]
        print(f"{program.name}: {program.microbatches} microbatches a step{kept}")
    if start:
        print(f"{program.name}: goes on from step {start}", flush=True)


def write_first_batch(name: str, batch: Mapping[str, jax.Array], context: RunContext) -> None:
    """Writes images of the first step's batch as samples/<name>_first_batch_00000000.png.

    It shows what crops, flips and the decoding have made of the data.
    """
    images = first_batch_picture(batch, _PICTURE_IMAGES) if context.is_main_process else None
    if images is not None and len(images):
        grid = image_grid(images, _PICTURE_COLUMNS, least=_LEAST_GRID_PIXELS)
        context.writer.write_image(name, 0, "first_batch", grid)


def run_loop(
    stage: Stage,
    config: ConfigDict,
    carry: Carry,
    position: tuple[int, int],
    batches: GlobalBatches | EveryStep,
    checkpoints: Checkpoints,
    context: RunContext,
) -> Carry | None:
    """Puts the hooks together and runs the loop.

    Args:
      stage, config, context: as in `train`.
      carry: before the first step.
      position: steps done and batches taken.
      batches: the first one is that of the next step.
      checkpoints: where they are saved.

    Returns:
      The carry, or None if a signal stopped the loop.
    """
    program, (start, taken) = stage.program, position
    timed = TimedBatches(batches)
    with progress_bar(
        program.num_steps,
        initial=start,
        description=program.name,
        enabled=context.is_main_process,
    ) as bar:
        lines = MetricLines(program, context, timed, bar, start=start)
        skipped = SkippedSteps(
            program,
            most_in_a_row=config.train.max_skipped_in_a_row,
            skipped=int(carry.state.skipped),
        )
        saver = Saver(
            program,
            checkpoints,
            lines,
            skipped,
            context.writer,
            save_every=stage.save_every,
            keep_every=config.train.keep_every,
            batches_before=taken - start,
        )
        profiler = Profiler(
            stage.folder.parent / FOLDER,
            start=config.profile.start,
            steps=config.profile.steps,
        )
        hooks = [
            *_hooks(stage, config, context, lines, skipped, saver),
            *([Hook(1, profiler)] if config.profile.steps else []),
        ]
        try:
            carry, complete = loop.run(program, carry, stage.frozen, timed, hooks, start=start)
        except BatchError as error:  # the steps that are done are not lost
            if jax.process_count() == 1 and error.step > start:
                saver.save(error.step, error.carry)
                saver.require_saved()
            if jax.process_count() > 1 or not context.interruption.requested:
                cause = error.__cause__
                assert cause is not None  # `loop.run` raises every BatchError from one
                raise cause from None
            return None
        finally:
            with contextlib.suppress(Exception):  # of devices that failed: their own error counts
                lines.flush()
            profiler.close()
        saver.require_saved()
    return carry if complete else None


def _hooks(
    stage: Stage,
    config: ConfigDict,
    context: RunContext,
    lines: MetricLines,
    skipped: SkippedSteps,
    saver: Saver,
) -> list[Hook]:
    """Returns all hooks in their order: what a hook of the stage shows is saved after it."""

    def show_first_batch(moment: Moment) -> None:
        if moment.step == 1:
            write_first_batch(stage.program.name, moment.batch, context)

    def stop(moment: Moment) -> None:
        moment.stops = moment.stops or context.stops(moment.step)

    return [
        Hook(1, lines.after_every_step),
        Hook(1, show_first_batch, at_end=False),
        Hook(config.log_every, skipped),
        Hook(config.train.max_skipped_in_a_row, skipped, at_end=False),
        Hook(config.log_every, lines),
        *stage.hooks,
        Hook(1, stop),
        Hook(1, saver),
    ]
