"""Batches from the host to the devices, some ahead of the step."""

import os
import queue
import threading
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from drifting_jax.config import ConfigDict
from drifting_jax.data import pipeline
from drifting_jax.data.sources import Source
from drifting_jax.data.transforms import Augmentation
from drifting_jax.distributed import transfer
from drifting_jax.training.batch_log import BatchLog, unreadable_records

_AHEAD = 2  # batches that wait on the devices


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
        "unreadable": unreadable_records(log, d.max_unreadable * len(source) / jax.process_count()),
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
                item = transfer.global_batch(self._mesh, self._padded(placed)), local
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
