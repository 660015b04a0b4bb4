"""Writes scalars and pictures of a run to metrics.jsonl, TensorBoard, PNG files and a tracker.

Writing metrics never stops a run: if the disk is full, an error is logged and the line or picture
is left out.
"""

import contextlib
import itertools
import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np
from absl import logging
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from drifting_jax.errors import UserError
from drifting_jax.files import parse_json, shown, write_bytes
from drifting_jax.workdir.image_files import check_image, save_png
from drifting_jax.workdir.trackers import Tracker

_NOT_FINITE = ("NaN", "Infinity", "-Infinity")  # as JSON's strings
_FLUSH_SECONDS = 60.0  # a mounted bucket shows nothing of a file before it is flushed
_file_number = itertools.count()  # event files of the same second and process need two names


class MetricWriter:
    """Appends metrics to <workdir>/metrics.jsonl, <workdir>/tensorboard and <workdir>/samples.

    Each line of metrics.jsonl is one JSON object: "stage", "step", then the scalars, not rounded.
    JSON has no numbers that are not finite: they are written as the strings "NaN", "Infinity" and
    "-Infinity", which `float` reads back. A half-written last line of a killed process is cut when
    the file is opened. Each stage is a run of its own in TensorBoard.
    """

    def __init__(
        self, workdir: str | os.PathLike, *, enabled: bool = True, tracker: Tracker | None = None
    ) -> None:
        """Opens the files of a workdir.

        Args:
          workdir: Of the run.
          enabled: False on all but the main process.
          tracker: Gets the same scalars and pictures, and is closed with the files.
        """
        self._workdir = Path(workdir)
        self._enabled = enabled
        self._tracker = tracker
        self._flushed_at = time.monotonic()
        self._events: dict[str, EventsWriter] = {}
        if enabled:
            self._workdir.mkdir(parents=True, exist_ok=True)
            self._open_lines()

    def write_scalars(self, stage: str, step: int, scalars: Mapping[str, Any]) -> None:
        """Writes one line, and a TensorBoard scalar for each number.

        Args:
          stage: "encoder", "generator", …
          step: Steps done.
          scalars: Numbers by name: of Python, or arrays of one element.

        Raises:
          ValueError: A scalar is called "stage" or "step", or has more than one element.
        """
        if clash := {"stage", "step"} & scalars.keys():
            raise ValueError(f"a scalar cannot be called {clash.pop()!r}: each line has its own")
        values = {name: _number(name, value) for name, value in scalars.items()}
        if not self._enabled:
            return
        line = {"stage": stage, "step": int(step)} | {n: _jsonable(v) for n, v in values.items()}
        text = json.dumps(line, ensure_ascii=False, allow_nan=False)
        self._append(shown(f"{text}\n").encode())
        self._add_events(stage, step, [summary.scalar(shown(n), v) for n, v in values.items()])
        if self._tracker is not None:
            self._tracker.log_scalars(stage, int(step), values)

    def write_image(self, stage: str, step: int, name: str, image: np.ndarray) -> None:
        """Writes <workdir>/samples/<stage>_<name>_<step>.png and a TensorBoard image.

        Args:
          stage: As in `write_scalars`.
          step: Steps done.
          name: What the picture shows.
          image: [height, width, 1 or 3] uint8.
        """
        check_image(image)
        if not self._enabled:
            return
        file_name = f"{stage}_{name}_{step:08d}.png".replace("/", "_")
        try:
            save_png(self._workdir / "samples" / file_name, image)
        except OSError as error:
            logging.error("Could not write the picture %s: %s", file_name, error)
        self._add_events(stage, step, [summary.image(shown(name), image, dataformats="HWC")])
        if self._tracker is not None:
            self._tracker.log_picture(stage, int(step), name, image)

    def write_parameters(self, stage: str, params: Any) -> None:
        """Writes a table to <workdir>/<stage>_parameters.txt and prints the number of parameters.

        There is no table where clu is not installed.

        Args:
          stage: As in `write_scalars`.
          params: Tree of arrays; only names, shapes and dtypes are read.
        """
        if not self._enabled:
            return
        count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
        print(f"{stage}: {count:,} parameters", flush=True)
        path = self._workdir / f"{stage}_parameters.txt"
        try:
            from clu import parameter_overview
        except ImportError as error:
            logging.warning("%s is not written: %s", path, error)
            return
        table = parameter_overview.get_parameter_overview(params, include_stats=False)
        try:
            path.write_text(table + "\n", encoding="utf-8")
        except OSError as error:
            logging.error("Could not write %s: %s", path, error)

    def truncate(self, stage: str, step: int) -> None:
        """Cuts the lines of a stage after a step, so that a resumed run writes no step twice.

        TensorBoard forgets these steps too.
        """
        if not self._enabled:
            return
        path = self._workdir / "metrics.jsonl"
        kept = []
        for line in path.read_bytes().splitlines(keepends=True):
            record = _parse(line)
            if record is None:
                logging.warning("Dropped a line of %s that is not a JSON object: %r", path, line)
            elif record.get("stage") != stage or record.get("step", 0) <= step:
                kept.append(line)
        try:
            write_bytes(path, b"".join(kept))
        except OSError as error:
            logging.error("Could not cut %s after step %d: %s", path, step, error)
        self._lines.close()
        self._open_lines()
        if stage in self._events:
            self._events.pop(stage).close()
        restart = Event(step=step + 1, session_log=SessionLog(status=SessionLog.START))
        self._write_events(stage, [restart])

    def flush(self) -> None:
        """Makes sure that no line of metrics.jsonl is lost if the machine stops."""
        if not self._enabled:
            return
        try:
            os.fsync(self._lines.fileno())
        except OSError as error:
            logging.error("Could not write metrics to %s: %s", self._lines.name, error)

    def close(self, *, failed: bool = False) -> None:
        """Closes the files and the tracker, which is told whether the run failed."""
        if not self._enabled:
            return
        self._enabled = False
        self._lines.close()
        for events in self._events.values():
            try:
                events.close()
            except OSError as error:
                logging.error("Could not close a TensorBoard file: %s", error)
        if self._tracker is not None:
            self._tracker.close(failed=failed)

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(failed=error is not None)

    def _open_lines(self) -> None:
        """Opens metrics.jsonl to append, after cutting a half-written last line."""
        path, whole = self._workdir / "metrics.jsonl", False
        if path.exists():
            # Cuts in place: there may be no room for a second file.
            before, newline, last = path.read_bytes().rpartition(b"\n")
            whole = _parse(last) is not None
            if last and not whole:
                os.truncate(path, len(before) + len(newline))
        self._lines = open(path, "ab", buffering=0)  # noqa: SIM115 (closed by close)
        if whole:
            self._append(b"\n")

    def _append(self, line: bytes) -> None:
        """Appends the whole line or nothing."""
        end = self._lines.seek(0, os.SEEK_END)
        try:
            if self._lines.write(line) == len(line):
                if time.monotonic() - self._flushed_at > _FLUSH_SECONDS:
                    self._flushed_at = time.monotonic()
                    os.fsync(self._lines.fileno())
                return
            problem: Any = "written in part"
        except OSError as error:
            problem = error
        logging.error("Could not write a line of metrics to %s: %s", self._lines.name, problem)
        with contextlib.suppress(OSError):
            self._lines.truncate(end)

    def _add_events(self, stage: str, step: int, summaries: list[Any]) -> None:
        now = time.time()
        self._write_events(
            stage, [Event(step=step, wall_time=now, summary=entry) for entry in summaries]
        )

    def _write_events(self, stage: str, events: list[Event]) -> None:
        # Writes without a thread. tensorboardX's SummaryWriter hands events to a thread through a
        # bounded queue: on a full disk the thread dies, and training would wait for it for ever.
        try:
            if stage not in self._events:
                directory = self._workdir / "tensorboard" / stage
                directory.mkdir(parents=True, exist_ok=True)
                suffix = f".{os.getpid()}.{next(_file_number)}"
                self._events[stage] = EventsWriter(str(directory / "events"), suffix)
            for event in events:
                self._events[stage].write_event(event)
            self._events[stage].flush()
        except OSError as error:
            logging.error("Could not write to TensorBoard: %s", error)


def read_metrics(workdir: str | os.PathLike, *, stage: str | None = None) -> list[dict[str, Any]]:
    """Returns the lines of <workdir>/metrics.jsonl, of all stages or one, without half lines.

    Numbers that are not finite come back as floats.
    """
    records = []
    for line in (Path(workdir) / "metrics.jsonl").read_bytes().splitlines():
        record = _parse(line)
        if record is not None and stage in (None, record.get("stage")):
            numbers = {n: v for n, v in record.items() if n != "stage"}
            records.append(
                {"stage": record.get("stage")}
                | {n: float(v) if v in _NOT_FINITE else v for n, v in numbers.items()}
            )
    return records


def _number(name: str, value: Any) -> int | float:
    array = np.asarray(value)
    if array.size != 1:
        raise ValueError(f"the scalar {name!r} must have one element; found shape {array.shape}")
    return int(array.item()) if array.dtype.kind in "biu" else float(array.item())


def _jsonable(value: int | float) -> int | float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        record = parse_json(line, "a line")
    except UserError:
        return None
    return record if isinstance(record.get("step", 0), int | float) else None
