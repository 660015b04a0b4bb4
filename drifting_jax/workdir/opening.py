"""Opens the workdir of a run: locks it and makes sure that it belongs to the config."""

import contextlib
import os
import re
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import jax

from drifting_jax.config import (
    ConfigDict,
    check_resume,
    load_config,
    save_config,
    values_to_keep,
    with_values,
)
from drifting_jax.distributed.agreement import on_all_processes, on_main_process
from drifting_jax.errors import UserError
from drifting_jax.files import read_json, shown, write_json
from drifting_jax.workdir import layout
from drifting_jax.workdir.lock import locked_by_main_process

_SHARED_DISK_SECONDS = 60.0  # a network disk may show the other machines a new file this late
# What may be there without a config.json: our own files, hidden ones, and logs of the job.
_BEFORE_CONFIG = re.compile(
    r"config\.json\.partial|data\.json|\..*|nohup.*|(log|.*\.(log|out|err))([.-]?\d+)?", re.I
)


@contextlib.contextmanager
def open_workdir(
    config: ConfigDict, workdir: Path, *, given: Collection[str] = ()
) -> Iterator[ConfigDict]:
    """Context that makes or resumes a workdir, writes its config.json and holds its lock.

    Nothing is written before the lock is held: a second start must not change the files of a run.

    Args:
      config: of `resolve`.
      workdir: the folder.
      given: fields that the user has set, by dotted names.

    Yields:
      The config that the run goes on with: `config`, but the behaviour of its own time for a run
      that is older than a field.

    Raises:
      UserError: the workdir was trained with another config, or its files are not a run's.
      LockHeldError: another run is in it.
    """
    on_main_process(_make_folder, workdir)
    with locked_by_main_process(workdir):
        kept = on_main_process(_write_config, config, workdir, list(given))
        # Only now do the others look: a network disk remembers for a while that a file was missing.
        on_all_processes(_wait_for_config, workdir)
        yield with_values(config, kept)


def is_complete(config: ConfigDict, workdir: Path) -> bool:
    """Returns whether the run has done all steps of the config and has measured what it made."""
    trained = config.encoder if config.task == "encoder" else config
    for name in ("evaluation.json", layout.COMPLETE):
        with contextlib.suppress(OSError, UserError):
            step = read_json(workdir / name).get("step")
            if type(step) is int and step >= trained.train.num_steps:
                return True
    return False


def mark_complete(workdir: Path, step: int) -> None:
    """Marks a run that ends without metrics of its samples as complete after so many steps."""
    write_json(workdir / layout.COMPLETE, {"step": step})


def has_checkpoints(workdir: Path) -> bool:
    """Whether anything was saved; if not, the run may still change its config and its data."""
    folders = layout.generator_checkpoints(workdir), layout.encoder_checkpoints(workdir)
    return any(step.name.isdecimal() for folder in folders for step in folder.glob("*"))


def _make_folder(workdir: Path) -> None:
    """Makes the workdir, unless it is there and holds a run or nothing."""
    if str(workdir) != shown(str(workdir)):
        raise UserError(f"--workdir must be a UTF-8 name; found {shown(str(workdir))}")
    if ":/" in str(workdir):  # pathlib has made one slash of two
        raise UserError(f"--workdir must be a directory (mount a bucket first); found {workdir}")
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir must be a directory; {workdir} is a file")
    workdir.mkdir(parents=True, exist_ok=True)
    known = (workdir / "config.json").exists()
    if not known and (found := _other_files(workdir)):
        raise UserError(
            f"{workdir} holds files but no config.json, so it is no run's directory (it has "
            f"{shown(found[0])}): choose another --workdir or empty it"
        )


def _other_files(folder: Path) -> list[str]:
    """The names of what is neither a run's own nor a log, nor a folder of logs."""
    own_output = _output_files()
    found = []
    for path in sorted(folder.iterdir()):
        if _BEFORE_CONFIG.fullmatch(path.name):
            continue
        if path.name == "logs" and path.is_dir():
            found += [f"logs/{name}" for name in _other_files(path)]
        elif _identity(path.stat()) not in own_output:
            found.append(path.name)
    return found


def _output_files() -> set[tuple[int, int]]:
    """The files that stdout and stderr go to."""
    found = set()
    for number in (1, 2):
        with contextlib.suppress(OSError):
            found.add(_identity(os.fstat(number)))
    return found


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _write_config(config: ConfigDict, workdir: Path, given: Collection[str]) -> dict[str, Any]:
    """Writes config.json, after comparing it with the config that the run began with.

    Returns:
      The fields in which the run keeps another value than that of `config`.
    """
    kept: dict[str, Any] = {}
    if (workdir / "config.json").exists() and has_checkpoints(workdir):
        stored = load_config(workdir)
        kept = values_to_keep(stored, config, given=given)
        config = with_values(config, kept)
        check_resume(stored, config)
    if not is_complete(config, workdir):  # else nothing is done that the file should tell of
        save_config(workdir, config)
    return kept


def _wait_for_config(workdir: Path) -> None:
    """Waits until this process sees the config.json that the main process wrote."""
    until = time.monotonic() + _SHARED_DISK_SECONDS
    while not (workdir / "config.json").exists():
        if time.monotonic() > until:
            raise UserError(
                f"process {jax.process_index()} does not see the {workdir} that process 0 "
                "wrote: --workdir must be on a disk that all processes share"
            )
        time.sleep(1.0)
