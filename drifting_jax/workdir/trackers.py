"""Services that show a run on a page: Weights & Biases and Trackio.

A run keeps one page: its id stands in <workdir>/tracker.json and is used again on a resume. Once a
tracker is open it never ends or slows the run: a thread of its own does all calls, and the first
that fails is logged.

To add a tracker, write a class as `_Wandb` and add it to `TRACKERS`.
"""

import contextlib
import functools
import importlib
import os
import queue
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from absl import logging

from drifting_jax.errors import UserError, first_line
from drifting_jax.files import read_json, write_json
from drifting_jax.workdir.image_files import as_pillow

_PROJECT = "drifting_jax"
_MOST_WAITING = 256  # calls that a slow tracker may be behind
_CLOSE_SECONDS = 20.0  # less than schedulers wait between SIGTERM and SIGKILL


class Tracker(Protocol):
    """What a run tells a tracker."""

    def log_scalars(self, stage: str, step: int, scalars: Mapping[str, float]) -> None:
        """Logs numbers by name, after so many steps of a stage; steps may come again."""

    def log_picture(self, stage: str, step: int, name: str, image: np.ndarray) -> None:
        """Logs an image [h, w, 1 or 3] uint8."""

    def close(self, *, failed: bool) -> None:
        """Sends what is left and closes the page; `failed`: whether an error ended the run."""


class _Wandb:
    """A run of wandb. Its environment variables, such as WANDB_PROJECT, go first."""

    def __init__(
        self, wandb: ModuleType, workdir: Path, ident: str, config: Mapping[str, Any]
    ) -> None:
        self._wandb, self._stages = wandb, set[str]()
        # The console stays as it is: a service that hangs would hold back every line of output.
        settings = _unless_set(console="off", finish_timeout=0.75 * _CLOSE_SECONDS)
        self._run = wandb.init(
            id=ident,
            resume="allow",
            config=dict(config),
            allow_val_change=True,
            settings=wandb.Settings(**settings),
            **_unless_set(project=_PROJECT, name=workdir.name, dir=str(workdir)),
        )

    def log_scalars(self, stage: str, step: int, scalars: Mapping[str, Any]) -> None:
        # wandb drops a line whose own step is below its last one, as a second stage begins, or a
        # resume from an older checkpoint. So wandb counts its lines, and the axis is our step.
        axis = f"{stage}/step"
        if stage not in self._stages:
            self._run.define_metric(f"{stage}/*", step_metric=axis)
            self._stages.add(stage)
        self._run.log({axis: step} | _with_prefix(stage, scalars))

    def log_picture(self, stage: str, step: int, name: str, image: np.ndarray) -> None:
        self.log_scalars(stage, step, {name: self._wandb.Image(as_pillow(image))})

    def close(self, *, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class _Trackio:
    """A run of trackio, in its own folder (TRACKIO_DIR) or where TRACKIO_SPACE_ID says."""

    def __init__(
        self, trackio: ModuleType, workdir: Path, ident: str, config: Mapping[str, Any]
    ) -> None:
        # Trackio finds a run to go on with by its name, and other workdirs may have the same.
        self._trackio = trackio
        self._run = trackio.init(
            project=_PROJECT, name=f"{workdir.name}-{ident}", resume="allow", config=dict(config)
        )

    def log_scalars(self, stage: str, step: int, scalars: Mapping[str, Any]) -> None:
        self._run.log(_with_prefix(stage, scalars), step=step)

    def log_picture(self, stage: str, step: int, name: str, image: np.ndarray) -> None:
        self.log_scalars(stage, step, {name: self._trackio.Image(as_pillow(image))})

    def close(self, *, failed: bool) -> None:
        self._run.finish()


# By the names of their packages, which are also our extras.
TRACKERS: dict[str, Callable[[ModuleType, Path, str, Mapping[str, Any]], Tracker]] = {
    "wandb": _Wandb,
    "trackio": _Trackio,
}


def import_tracker(name: str) -> ModuleType | None:
    """Returns the package of a tracker; None for "none".

    Raises:
      UserError: it is not installed.
    """
    if name == "none":
        return None
    try:
        package = importlib.import_module(name)
        reason = "" if hasattr(package, "init") else "a folder has its name"
    except ImportError as error:
        reason = first_line(error)
    if reason:
        raise UserError(
            f"config.tracker={name} needs the package {name} ({reason}): pip install -e "
            f"'.[{name}]', or set config.tracker to none"
        )
    return package


def open_tracker(name: str, *, workdir: Path, config: Mapping[str, Any]) -> Tracker | None:
    """Opens the page of a run, a new one or the one that it had.

    Args:
      name: a key of `TRACKERS`, or "none".
      workdir: of the run; gets tracker.json.
      config: of the run, which the page shows.

    Returns:
      The tracker. None for "none", and for a page that cannot be opened again: a run that has
      begun goes on without it, and an error is logged.

    Raises:
      UserError: the package is missing, or a new page cannot be opened.
    """
    package, path = import_tracker(name), workdir / "tracker.json"
    if package is None:
        return None
    known: dict[str, Any] = {}
    with contextlib.suppress(OSError, UserError):  # a damaged file: begin a new page
        known = read_json(path)
    ident = str(known.get(name) or uuid.uuid4().hex[:8])
    try:
        tracker = TRACKERS[name](package, workdir, ident, config)
    except Exception as error:
        if name not in known:
            raise UserError(f"config.tracker={name} does not open: {first_line(error)}") from error
        logging.error("The run goes on without %s: %s", name, first_line(error))
        return None
    write_json(path, known | {name: ident})
    return _Background(tracker, name)


class _Background:
    """Hands the calls of a tracker to a thread, which the run does not wait for."""

    def __init__(self, tracker: Tracker, name: str) -> None:
        self._tracker, self._name, self._reported = tracker, name, False
        self._calls: queue.Queue[Callable[[], None] | None] = queue.Queue(_MOST_WAITING)
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def log_scalars(self, *arguments: Any) -> None:
        self._add(functools.partial(self._tracker.log_scalars, *arguments))

    def log_picture(self, *arguments: Any) -> None:
        self._add(functools.partial(self._tracker.log_picture, *arguments))

    def close(self, *, failed: bool) -> None:
        end = time.monotonic() + _CLOSE_SECONDS
        with contextlib.suppress(queue.Full):
            for call in (functools.partial(self._tracker.close, failed=failed), None):
                self._calls.put(call, timeout=max(end - time.monotonic(), 0))
        self._thread.join(max(end - time.monotonic(), 0))
        if self._thread.is_alive():
            self._report(f"it was not done after {_CLOSE_SECONDS:.0f} s")

    def _add(self, call: Callable[[], None]) -> None:
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            self._report(f"it is {_MOST_WAITING} calls behind, and what follows is left out")

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                call()
            except Exception as error:
                self._report(first_line(error))

    def _report(self, problem: str) -> None:
        """Logs the first problem; what is missing on the page stands in the workdir."""
        if not self._reported:
            self._reported = True
            logging.error("%s failed, and the run goes on: %s", self._name, problem)


def _unless_set(**defaults: Any) -> dict[str, Any]:
    """Returns the settings of wandb that its environment variables do not set."""
    return {n: value for n, value in defaults.items() if not os.environ.get(f"WANDB_{n.upper()}")}


def _with_prefix(stage: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{stage}/{name}": value for name, value in values.items()}
