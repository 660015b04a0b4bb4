"""Logs of a run's batches: the unreadable records, and the records of every batch."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from drifting_jax.data import pipeline
from drifting_jax.data.unreadable import most_unreadable, read_reasons
from drifting_jax.digests import digest_bytes
from drifting_jax.errors import UserError
from drifting_jax.files import parse_json, write_bytes


def unreadable_records(folder: Path | None, share: float, count: int) -> pipeline.Unreadable:
    """Counts unreadable records. unreadable_<process>.jsonl keeps them for the next resume.

    Args:
      folder: of the file; None for no file.
      share: config.data.max_unreadable; the run stops when more of the data set is unreadable.
      count: records of the data set. Each process meets all of them in time, so each holds the
        whole limit against what it has met.
    """
    allowed = most_unreadable(share, count)
    rule = f"config.data.max_unreadable={share:g} of {count} records"
    if folder is None:
        return pipeline.Unreadable(allowed, rule=rule)
    path = folder / f"unreadable_{jax.process_index()}.jsonl"

    def append(index: int, name: str, reason: str) -> None:
        _append_line(path, {"index": index, "name": name, "reason": reason})

    return pipeline.Unreadable(allowed, rule=rule, known=read_reasons(path), on_new=append)


def known_unreadable(folder: Path) -> dict[int, str]:
    """{index: reason} of the unreadable records that any process of the run has met so far.

    Reasons are empty in files of older versions.
    """
    found: dict[int, str] = {}
    for path in sorted(folder.glob("unreadable_*.jsonl")):
        found |= read_reasons(path)
    return found


def _append_line(path: Path, record: dict[str, Any]) -> None:
    """Adds a line of JSON. A full disk is logged and does not stop the run."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
    except OSError as error:
        logging.error("Could not write a line to %s: %s", path, error)


class BatchLog:
    """batches_<process>.jsonl: indices of the records of every batch, and a digest of its images.

    Args:
      folder: of the file.
      stage: name of these batches.
      start: number of the first batch; lines of this stage from there on are removed.
    """

    def __init__(self, folder: Path, *, stage: str, start: int):
        self._path = folder / f"batches_{jax.process_index()}.jsonl"
        self._stage, self._batch = stage, start
        if self._path.is_file():  # the batches after the checkpoint are taken again
            lines = self._path.read_bytes().splitlines(keepends=True)
            write_bytes(self._path, b"".join(line for line in lines if self._stays(line)))

    def _stays(self, line: bytes) -> bool:
        try:
            record = parse_json(line, self._path)
        except UserError:
            return False  # a kill cut it short
        batch = record.get("batch")
        return type(batch) is int and (record.get("stage") != self._stage or batch < self._batch)

    def write(self, batch: dict[str, np.ndarray]) -> None:
        """Adds the next batch."""
        record = {
            "stage": self._stage,
            "batch": self._batch,
            "index": batch["index"].tolist(),
            "sha256": digest_bytes(batch["image"].tobytes()),
        }
        _append_line(self._path, record)
        self._batch += 1
