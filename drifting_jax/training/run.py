"""One run in one workdir: opened or resumed, trained, measured, and reported."""

import contextlib
import json
import re
import shlex
import sys
import time
from pathlib import Path

import jax

from drifting_jax.config import ConfigDict, check_resume, load_config, save_config
from drifting_jax.data.sources import SMALL_SOURCES
from drifting_jax.distributed import transfer
from drifting_jax.distributed.agreement import on_all_processes
from drifting_jax.errors import UserError
from drifting_jax.evaluation.small_runs import evaluate_run
from drifting_jax.files import write_json
from drifting_jax.training import encoder as train_mae
from drifting_jax.training import generator as train
from drifting_jax.training import toy
from drifting_jax.training.loop import RunContext
from drifting_jax.training.restore import load_run
from drifting_jax.workdir import pictures
from drifting_jax.workdir.interruption import Interruption
from drifting_jax.workdir.lock import locked
from drifting_jax.workdir.metrics import MetricWriter, read_metrics
from drifting_jax.workdir.stopping import StopAgreement

COMPLETE = train_mae.COMPLETE  # marks a run that ends without figures
_SHARED_DISK_SECONDS = 60.0  # until what one process wrote is seen by all
_OURS = ("config.json.partial", ".lock", "data.json")  # what a run may leave before its config


def run(config: ConfigDict, *, workdir: Path) -> int:
    """Runs a config's task in its workdir, from wherever it stands.

    Returns:
      The exit status of the process: 0 done, 75 or 130 stopped by a signal and saved.

    Raises:
      UserError: the workdir belongs to another run or config, or the task cannot go on.
    """
    is_main_process = jax.process_index() == 0
    with contextlib.ExitStack() as stack:
        on_all_processes(_enter, workdir, stack)
        open_workdir(config, workdir)
        if transfer.from_first_process(_is_complete(config, workdir)):
            _say(is_main_process, _complete_message(config, workdir))
            return 0
        writer = stack.enter_context(MetricWriter(workdir, enabled=is_main_process))
        interruption = stack.enter_context(Interruption())
        context = RunContext(
            writer=writer,
            interruption=interruption,
            stops=StopAgreement(interruption),
            is_main_process=is_main_process,
        )
        _say(
            is_main_process,
            f"{workdir}: {jax.device_count()} {jax.devices()[0].platform} device(s)",
        )
        started = time.monotonic()
        tasks = {"toy": toy.train, "encoder": train_mae.train, "generator": _generator}
        if not tasks[config.task](config, workdir=workdir, context=context):
            _say(is_main_process, _stopped_message(workdir))
            return interruption.exit_status
        minutes = (time.monotonic() - started) / 60
        _say(is_main_process, f"\ndone in {minutes:.1f} min\n{_where(workdir)}")
    return 0


def _enter(workdir: Path, stack: contextlib.ExitStack) -> None:
    """Locks the workdir before anything is written: a second start must not change its files."""
    if jax.process_index() == 0:
        _make_folder(workdir)
        stack.enter_context(locked(workdir))


def open_workdir(config: ConfigDict, workdir: Path) -> None:
    """Makes the workdir with its config.json, or checks that it belongs to this config.

    Raises:
      UserError: it was trained with another config, or holds files that are no run's.
    """
    on_all_processes(_write_config, config, workdir)
    # The others look only now: a network disk remembers for a while what was not there.
    on_all_processes(_see_config, workdir)


def _write_config(config: ConfigDict, workdir: Path) -> None:
    if jax.process_index() == 0:
        _make_folder(workdir)
        if (workdir / "config.json").exists() and _has_begun(workdir):
            check_resume(load_config(workdir), config)
        save_config(workdir, config)


def _see_config(workdir: Path) -> None:
    until = time.monotonic() + _SHARED_DISK_SECONDS
    while not (workdir / "config.json").exists():
        if time.monotonic() > until:
            raise UserError(
                f"process {jax.process_index()} does not see the {workdir} that process 0 "
                "wrote: --workdir must be on a disk that all processes share"
            )
        time.sleep(1.0)


def _make_folder(workdir: Path) -> None:
    if ":/" in str(workdir):  # pathlib has made one slash of two
        raise UserError(f"--workdir must be a directory (mount a bucket first); found {workdir}")
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir must be a directory; {workdir} is a file")
    workdir.mkdir(parents=True, exist_ok=True)
    known = (workdir / "config.json").exists()
    if not known and any(p.name not in _OURS for p in workdir.iterdir()):
        raise UserError(
            f"{workdir} holds files but no config.json, so it is no run's directory: choose "
            "another --workdir or empty it"
        )


def _has_begun(workdir: Path) -> bool:
    """Whether anything was saved: a run that ended in a mistake before may change its config."""
    folders = train.checkpoint_directory(workdir), train_mae.checkpoint_directory(workdir)
    return any(step.name.isdecimal() for folder in folders for step in folder.glob("*"))


def _generator(config: ConfigDict, *, workdir: Path, context: RunContext) -> bool:
    if not train.train(config, workdir=workdir, context=context):
        return False
    if context.is_main_process:
        records = read_metrics(workdir, stage="generator")
        pictures.write_drift(workdir / "drift.png", records, config.drift.temperatures)
    if config.data.source not in SMALL_SOURCES:
        if context.is_main_process:  # it marks the run as complete
            write_json(workdir / COMPLETE, {"step": config.train.num_steps})
            _say(True, f"\nsamples: python -m drifting_jax.sample --workdir={workdir}")
        return True
    _say(context.is_main_process, "\nsampling and measuring ...")
    found = evaluate_run(
        load_run(workdir),
        workdir=workdir,
        seeds=[config.seed],
        report=lambda table: _say(context.is_main_process, f"\n{table}"),
        stopped=context.stops,
    )
    if found is None:
        return False
    scalars = {f"{record.metric}/alpha_{record.alpha:g}": record.value for record in found}
    context.writer.write_scalars("evaluation", config.train.num_steps, scalars)
    return True


def _is_complete(config: ConfigDict, workdir: Path) -> bool:
    trained = config.encoder if config.task == "encoder" else config
    for name in ("evaluation.json", COMPLETE):
        with contextlib.suppress(OSError, ValueError, KeyError):
            record = json.loads((workdir / name).read_text(encoding="utf-8"))
            if record["step"] >= trained.train.num_steps:
                return True
    return False


def _complete_message(config: ConfigDict, workdir: Path) -> str:
    steps = "encoder.train.num_steps" if config.task == "encoder" else "train.num_steps"
    return (
        f"the run in {workdir} is complete. To train longer, raise --config.{steps} (a "
        "cosine schedule then rises again from where it ended); to start anew, give another "
        f"--workdir or delete {workdir}\n{_where(workdir)}"
    )


def _stopped_message(workdir: Path) -> str:
    own = re.compile(r"--?(coordinator|num_processes|process_id)(=.*)?")
    kept, found = [], None
    for word in sys.orig_argv:
        value_follows = found and not found[2]
        found = None if value_follows else own.fullmatch(word)
        if not (found or value_follows):
            kept.append(word)
    on = ", on every process," if jax.process_count() > 1 else ""
    return (
        f"\nstopped and saved ({workdir}); the same command{on} goes on from there:\n"
        f"  {shlex.join(kept)}"
    )


def _where(workdir: Path) -> str:
    """A table of what a run leaves, for what exists."""
    entries = {
        "report.html": "figures over alpha, samples, their nearest training images",
        "evaluation.json": "the figures",
        "samples": "pictures",
        "samples/final.npz": "the samples that were measured",
        "drift.gif": "q drifting to p",
        "frames": "the points in it",
        "field.png": "the drifting field",
        "drift.png": "raw drift and diversity over training",
        "metrics.jsonl": "all scalars, a line a logged step",
        "tensorboard": f"the same: tensorboard --logdir {workdir}/tensorboard",
        "checkpoints": "state, averages, queue, position",
        "encoder/checkpoints": "the pre-trained encoder",
        "data.json": "what the data was, class names",
        "config.json": "resolved config, versions",
        "encoder_parameters.txt": "the encoder's parameters, by name",
        "generator_parameters.txt": "the generator's parameters, by name",
    }
    there = {str(workdir / name): words for name, words in entries.items()}
    there = {path: words for path, words in there.items() if Path(path).exists()}
    width = max(map(len, there), default=0)
    return "\n".join(f"  {path:<{width}}  {words}" for path, words in there.items())


def _say(is_main_process: bool, text: str) -> None:
    if is_main_process:
        print(text, file=sys.stderr if text.startswith("\nstopped") else sys.stdout, flush=True)
