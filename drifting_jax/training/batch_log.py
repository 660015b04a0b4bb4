"""What a run notes of its batches: unreadable records, and the records of every batch."""

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from drifting_jax.data import pipeline
from drifting_jax.files import write_bytes

_AHEAD = 2  # batches that wait on the devices


def unreadable_records(folder: Path | None, allowed: float) -> pipeline.Unreadable:
    """The count of unreadable records, which goes on over resumes: unreadable_<process>.jsonl."""
    if folder is None:
        return pipeline.Unreadable(allowed)
    path = folder / f"unreadable_{jax.process_index()}.jsonl"
    known = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError, KeyError):  # cut short by a kill
                known.append(json.loads(line)["index"])

    def tell(index: int, name: str) -> None:
        _append_line(path, {"index": index, "name": name})

    return pipeline.Unreadable(allowed, known=known, tell=tell)


def _append_line(path: Path, record: dict[str, Any]) -> None:
    """Adds a line of JSON; a full disk is logged, and does not stop the run."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
    except OSError as error:
        logging.error("Could not write a line to %s: %s", path, error)


class BatchLog:
    """batches_<process>.jsonl: the records of every batch and a hash of what was made of them."""

    def __init__(self, folder: Path, *, stage: str, start: int):
        self._path = folder / f"batches_{jax.process_index()}.jsonl"
        self._stage, self._batch = stage, start
        if self._path.is_file():  # what follows the checkpoint is done again
            lines = self._path.read_text(encoding="utf-8").splitlines(keepends=True)
            write_bytes(self._path, "".join(filter(self._stays, lines)).encode())

    def _stays(self, line: str) -> bool:
        try:
            record = json.loads(line)
        except ValueError:
            return False  # cut short by a kill
        return record["stage"] != self._stage or record["batch"] < self._batch

    def write(self, batch: dict[str, np.ndarray]) -> None:
        """Adds the next batch."""
        record = {
            "stage": self._stage,
            "batch": self._batch,
            "index": batch["index"].tolist(),
            "sha256": hashlib.sha256(np.ascontiguousarray(batch["image"]).tobytes()).hexdigest(),
        }
        _append_line(self._path, record)
        self._batch += 1
