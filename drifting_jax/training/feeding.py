"""Between the data on the disk and the steps on the devices: which data, and batches of it."""

import contextlib
import hashlib
import json
import os
import queue
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from drifting_jax.config import ConfigDict
from drifting_jax.data import pipeline
from drifting_jax.data.sources import DataSpec, Source, make_source
from drifting_jax.data.transforms import Augmentation
from drifting_jax.distributed import meshes
from drifting_jax.errors import UserError
from drifting_jax.files import write_bytes, write_json

_AHEAD = 2  # batches that wait on the devices


def open_source(config: ConfigDict, workdir: Path) -> Source:
    """The training split, which must be the one that the run began with.

    What identifies it stands in <workdir>/data.json.

    Raises:
      UserError: there is no such data, it is not what the run began with, or the processes of the
        run see different data.
    """
    source = make_source(config.data, "train")
    found = {
        "count": len(source),
        "fingerprint": getattr(getattr(source, "records", None), "fingerprint", ""),
        "image_shape": list(source.image_shape),
        "class_names": list(source.class_names),
    }
    _require_same_everywhere(found)
    path = workdir / "data.json"
    if path.is_file():
        began = json.loads(path.read_text(encoding="utf-8"))
        for name, value in found.items():
            if began.get(name) != value:
                raise UserError(
                    f"the data in {config.data.path or config.data.source} is not what the run in "
                    f"{workdir} began with: {_words(began)} then, {_words(found)} now"
                )
    elif jax.process_index() == 0:
        write_json(path, found)
    return source


def read_data_spec(workdir: Path, config: ConfigDict) -> tuple[DataSpec, list[str]]:
    """Shapes and class names of a run's data, which needs not be there if data.json is.

    Raises:
      UserError: neither is there.
    """
    path = workdir / "data.json"
    if not path.is_file():
        source = make_source(config.data, "train")
        return DataSpec(source.image_shape, source.num_classes), list(source.class_names)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        names = record["class_names"]
        return DataSpec(tuple(record["image_shape"]), len(names)), names
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def _words(record: dict[str, Any]) -> str:
    return (
        f"{record.get('count')} records of {len(record.get('class_names', []))} classes, "
        f"fingerprint {record.get('fingerprint') or 'none'}"
    )


def _require_same_everywhere(found: dict[str, Any]) -> None:
    if jax.process_count() == 1:
        return
    digest = hashlib.sha256(json.dumps(found).encode()).digest()
    digests = multihost_utils.process_allgather(np.frombuffer(digest, np.uint8))
    for process, other in enumerate(digests):
        if not np.array_equal(other, digests[0]):
            raise UserError(
                f"process {process} sees other data than process 0; all must see the same. "
                f"Process {jax.process_index()}: {_words(found)}"
            )


def make_batches(
    config: ConfigDict,
    source: Source,
    mesh: Mesh,
    *,
    batch_size: int,
    start: int,
    crop: str = "center",
    log: Path | None = None,
    stage: str = "",
) -> "GlobalBatches":
    """Shuffled batches of a source as global arrays, from batch `start` on.

    Args:
      config: its `data` section says how images are augmented; points are not.
      source: of the records.
      mesh: that the batches are split over.
      batch_size: of all processes together.
      start: batches already taken.
      crop: "center" or "random_resized".
      log: folder where unreadable records are noted and, if the config says so, the records of
        every batch as it is handed out; None for no log.
      stage: what the log calls these batches.
    """
    d = config.data
    images = {} if config.task == "toy" else {
        "augmentation": Augmentation(crop=crop, min_area=d.crop_min_area, flip=d.flip),
        "unreadable": _unreadable(log, d.max_unreadable * len(source) / jax.process_count()),
    }  # fmt: skip
    local = pipeline.batches(
        source,
        batch_size=batch_size,
        seed=config.seed,
        start=start,
        num_workers=min(d.num_workers, os.cpu_count() or 1),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        **images,
    )
    note = BatchLog(log, stage=stage, start=start) if log and d.get("log_batches") else None
    return GlobalBatches(local, mesh, note)


def _unreadable(folder: Path | None, allowed: float) -> pipeline.Unreadable:
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


class GlobalBatches(Iterator[dict[str, jax.Array]]):
    """Puts the batches of `pipeline.Batches` on the devices, some ahead of the step, in a thread.

    A batch of labelled records that does not split over the devices ends in rows of label -1, each
    process's part in its own.

    Close it, or use it as a context manager.
    """

    def __init__(self, local: pipeline.Batches, mesh: Mesh, log: BatchLog | None = None):
        self._local, self._mesh, self._log = local, mesh, log
        self._ready: queue.Queue = queue.Queue(_AHEAD)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._fill, daemon=True)
        self._thread.start()

    def __next__(self) -> dict[str, jax.Array]:
        found, local = self._ready.get()
        if local is None:
            self._ready.put((found, None))  # and so for whoever asks again
            raise found
        if self._log:
            self._log.write(local)
        return found

    def _fill(self) -> None:
        while not self._closed.is_set():
            try:
                local = next(self._local)
                placed = {name: value for name, value in local.items() if name != "index"}
                item = meshes.global_batch(self._mesh, self._padded(placed)), local
            except BaseException as error:
                item = error, None
            while not self._closed.is_set():
                try:
                    self._ready.put(item, timeout=0.1)
                    break
                except queue.Full:
                    continue
            if item[1] is None:
                return

    def _padded(self, local: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """With rows of label -1, which the queue leaves out, up to a multiple of the devices."""
        devices = self._mesh.size // jax.process_count()
        if "label" not in local or len(local["label"]) % devices == 0:
            return local
        missing = -len(local["label"]) % devices
        widths = {name: [(0, missing)] + [(0, 0)] * (x.ndim - 1) for name, x in local.items()}
        padded = {name: np.pad(x, widths[name]) for name, x in local.items()}
        padded["label"][-missing:] = -1
        return padded

    def close(self) -> None:
        """Ends the thread and the workers; harmless twice."""
        self._closed.set()
        self._thread.join()
        self._local.close()

    def __enter__(self) -> "GlobalBatches":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
