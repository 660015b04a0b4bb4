"""One run in one workdir: opens it, runs the config's task, and reports."""

import contextlib
import re
import shlex
import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import TextIO

import jax

from drifting_jax.config import ConfigDict
from drifting_jax.config.values import plain
from drifting_jax.data.sources import SMALL_SOURCES
from drifting_jax.distributed.agreement import on_all_processes, on_main_process
from drifting_jax.distributed.processes import is_main_process
from drifting_jax.errors import UserError
from drifting_jax.evaluation.small_runs import evaluate_run
from drifting_jax.files import expanded
from drifting_jax.method.fields.table import drift_names
from drifting_jax.surroundings import settled_jax
from drifting_jax.training import build, encoder, generator, toy
from drifting_jax.training.hooks import RunContext
from drifting_jax.training.nearest_images import show_nearest
from drifting_jax.training.restore import load_run
from drifting_jax.training.tasks import find_task
from drifting_jax.workdir import pictures
from drifting_jax.workdir.interruption import Interruption
from drifting_jax.workdir.layout import list_contents
from drifting_jax.workdir.metrics import MetricWriter, read_metrics
from drifting_jax.workdir.opening import is_complete, mark_complete, open_workdir
from drifting_jax.workdir.stopping import StopAgreement
from drifting_jax.workdir.trackers import import_tracker, open_tracker


@settled_jax()
def run(config: ConfigDict, *, workdir: str | Path, given: Collection[str] = ()) -> int:
    """Runs a config's task in its workdir, from wherever it stands.

    Args:
      config: of `resolve`.
      workdir: the folder of the run, which is made.
      given: fields that the user has set, by dotted names; see `open_workdir`.

    Returns:
      The exit status of the process: 0 done, 75 or 130 stopped by a signal and saved.

    Raises:
      UserError: the workdir belongs to another run or config, or the task cannot go on.
    """
    workdir = Path(expanded(str(workdir)))
    build.check_choices(config)
    on_main_process(_check_tracker, config)
    with contextlib.ExitStack() as stack:
        config = stack.enter_context(open_workdir(config, workdir, given=given))
        if on_main_process(is_complete, config, workdir):
            _say(_complete_message(config, workdir))
            return 0
        interruption = stack.enter_context(Interruption())  # first: closing a tracker takes time
        writer = stack.enter_context(on_all_processes(_open_writer, config, workdir))
        context = RunContext(
            writer=writer,
            interruption=interruption,
            stops=StopAgreement(interruption),
            is_main_process=is_main_process(),
        )
        _say(f"{workdir}: {jax.device_count()} {jax.devices()[0].platform} device(s)")
        started = time.monotonic()
        if not _train(config, workdir=workdir, context=context):
            _say(resume_message(workdir), file=sys.stderr)
            return interruption.exit_status
        minutes = (time.monotonic() - started) / 60
        _say(f"\ndone in {minutes:.1f} min\n{list_contents(workdir)}")
    return 0


def _train(config: ConfigDict, *, workdir: Path, context: RunContext) -> bool:
    """Runs the config's task; returns whether it came to the end."""
    own = {"toy": toy.train, "encoder": encoder.train, "generator": _run_generator}
    outside = find_task(config.task)
    train = own[config.task] if outside is None else outside.train
    return train(config, workdir=workdir, context=context)


def _check_tracker(config: ConfigDict) -> None:
    """Raises UserError if the tracker's package is missing; before the workdir is made."""
    import_tracker(config.tracker)


def _open_writer(config: ConfigDict, workdir: Path) -> MetricWriter:
    """Opens the writer of metrics, on the main process with the tracker."""
    if not is_main_process():
        return MetricWriter(workdir, enabled=False)
    tracker = open_tracker(config.tracker, workdir=workdir, config=plain(config))
    try:
        return MetricWriter(workdir, tracker=tracker)
    except BaseException:
        if tracker is not None:
            tracker.close(failed=True)
        raise


def resume_message(workdir: Path) -> str:
    """Returns what a stopped run prints: its own command, without the flags of a launcher."""
    saved = f"\nstopped and saved ({workdir}); the same"
    if "ipykernel" in sys.modules:  # in a notebook, orig_argv is the command of its kernel
        return f"{saved} cell goes on from there"
    added = re.compile(r"--?(coordinator|num_processes|process_id)(=.*)?")
    kept: list[str] = []
    value_follows = False  # of an added flag without "="
    for word in sys.orig_argv:
        if value_follows:
            value_follows = False
        elif flag := added.fullmatch(word):
            value_follows = flag[2] is None
        else:
            kept.append(word)
    on = ", on every process," if jax.process_count() > 1 else ""
    return f"{saved} command{on} goes on from there:\n  {shlex.join(kept)}"


def _run_generator(config: ConfigDict, *, workdir: Path, context: RunContext) -> bool:
    """Trains the generator, and measures it if it makes small images; whether all is done."""
    if not generator.train(config, workdir=workdir, context=context):
        return False
    on_main_process(_draw_pictures, config, workdir)
    if config.data.source not in SMALL_SOURCES:
        on_main_process(mark_complete, workdir, config.train.num_steps)
        _show_nearest(config, workdir)
        sample = ["python", "-m", "drifting_jax.sample", f"--workdir={workdir}"]
        _say(f"\nsamples: {shlex.join(sample)}")
        return True
    _say("\nsampling and measuring ...")
    found = evaluate_run(
        load_run(workdir),
        workdir=workdir,
        seeds=[config.seed],
        report=lambda table: _say(f"\n{table}"),
        stopped=context.stops,
    )
    if found is None:
        return False
    scalars = {f"{record.metric}/alpha_{record.alpha:g}": record.value for record in found}
    context.writer.write_scalars("evaluation", config.train.num_steps, scalars)
    return True


def _show_nearest(config: ConfigDict, workdir: Path) -> None:
    """Shows the nearest training images of people's own images. A failure costs the page alone."""
    if config.data.source != "images" or config.data.latent or jax.process_count() > 1:
        return
    if config.encoder.kind == "none":  # the page needs its features
        return
    _say("\nlooking for the nearest training images of samples ...")
    try:
        _say(show_nearest(workdir))
    except (UserError, OSError) as error:
        _say(f"left out: {error}")


def _draw_pictures(config: ConfigDict, workdir: Path) -> None:
    pictures.write_training(workdir / "samples" / "training.gif", workdir / "samples")
    records = read_metrics(workdir, stage="generator")
    pictures.write_drift(workdir / "drift.png", records, drift_names(build.drift_options(config)))


def _complete_message(config: ConfigDict, workdir: Path) -> str:
    steps = "encoder.train.num_steps" if config.task == "encoder" else "train.num_steps"
    return (
        f"the run in {workdir} is complete. To train longer, raise --config.{steps} (a "
        "cosine schedule then rises again from where it ended); to start anew, give another "
        f"--workdir or delete {workdir}\n{list_contents(workdir)}"
    )


def _say(text: str, *, file: TextIO | None = None) -> None:
    """Prints on the main process."""
    if is_main_process():
        print(text, file=file, flush=True)
