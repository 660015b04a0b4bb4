"""Opens the workdir of a run: locks it and makes sure that it belongs to the config."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import jax

from drifting_jax.config import ConfigDict, check_resume, load_config, save_config
from drifting_jax.distributed.agreement import on_all_processes, on_main_process
from drifting_jax.errors import UserError
from drifting_jax.files import read_json, write_json
from drifting_jax.workdir import layout
from drifting_jax.workdir.lock import locked_by_main_process

_SHARED_DISK_SECONDS = 60.0  # a network disk may show the other machines a new file this late
_BEFORE_CONFIG = ("config.json.partial", ".lock", "data.json")  # may be there without a config.json


@contextlib.contextmanager
def open_workdir(config: ConfigDict, workdir: Path) -> Iterator[None]:
    """Context that makes or resumes a workdir, writes its config.json and holds its lock.

    Nothing is written before the lock is held: a second start must not change the files of a run.

    Raises:
      UserError: the workdir was trained with another config, or its files are not a run's.
      LockHeldError: another run is in it.
    """
    on_main_process(_make_folder, workdir)
    with locked_by_main_process(workdir):
        on_main_process(_write_config, config, workdir)
        # Only now do the others look: a network disk remembers for a while that a file was missing.
        on_all_processes(_wait_for_config, workdir)
        yield


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


def _make_folder(workdir: Path) -> None:
    """Makes the workdir, unless it is there and holds a run or nothing."""
    if ":/" in str(workdir):  # pathlib has made one slash of two
        raise UserError(f"--workdir must be a directory (mount a bucket first); found {workdir}")
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir must be a directory; {workdir} is a file")
    workdir.mkdir(parents=True, exist_ok=True)
    known = (workdir / "config.json").exists()
    if not known and any(path.name not in _BEFORE_CONFIG for path in workdir.iterdir()):
        raise UserError(
            f"{workdir} holds files but no config.json, so it is no run's directory: choose "
            "another --workdir or empty it"
        )


def _write_config(config: ConfigDict, workdir: Path) -> None:
    """Writes config.json, after comparing it with the config that the run began with."""
    if (workdir / "config.json").exists() and _has_checkpoints(workdir):
        check_resume(load_config(workdir), config)
    save_config(workdir, config)


def _has_checkpoints(workdir: Path) -> bool:
    """Whether anything was saved; if not, the run may still change its config."""
    folders = layout.generator_checkpoints(workdir), layout.encoder_checkpoints(workdir)
    return any(step.name.isdecimal() for folder in folders for step in folder.glob("*"))


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
