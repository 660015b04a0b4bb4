"""Batches from the host to the devices, some ahead of the step."""

import functools
import os
import queue
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

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
      source: the records.
      mesh: the devices that share each batch.
      batch_size: of all processes together.
      start: batches already taken.
      crop: "center" or "random_resized".
      log: folder for the log of unreadable records and, with config.data.log_batches, of the
        records of every batch; None for no log.
      stage: the name of these batches in the log.
    """
    d = config.data
    augmentation, unreadable = Augmentation(), None
    if "flip" in d:  # images
        augmentation = Augmentation(crop=crop, min_area=d.crop_min_area, flip=d.flip)
        unreadable = unreadable_records(log, d.max_unreadable, len(source))
    local = pipeline.batches(
        source,
        batch_size=batch_size,
        seed=config.seed,
        start=start,
        augmentation=augmentation,
        unreadable=unreadable,
        num_workers=min(d.num_workers, os.cpu_count() or 1),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    note = BatchLog(log, stage=stage, start=start) if log and d.get("log_batches") else None
    return GlobalBatches(local, mesh, note)


def first_batch_picture(batch: Mapping[str, jax.Array], count: int) -> np.ndarray | None:
    """The first images of this process's part of a global batch, for a picture of the data.

    Args:
      batch: "image" [b, h, w, c], uint8 pixels or float16 latents, and "label" [b]; rows of label
        -1 are padding.
      count: how many images at most.

    Returns:
      [n, h, w, c] uint8, n <= count: pixels as they are; of latents the first three channels, all
      scaled together so that their least value is 0 and their largest 255. None for points.
    """
    if "image" not in batch or batch["image"].ndim != 4:
        return None
    labels, images = (_own_rows(batch[name], count) for name in ("label", "image"))
    images = images[labels >= 0]
    if images.dtype == np.uint8:
        return images
    colours = images[..., :3].astype(np.float32)
    low, high = colours.min(initial=np.inf), colours.max(initial=-np.inf)
    return np.rint((colours - low) * (255.0 / np.maximum(high - low, 1e-12))).astype(np.uint8)


def _own_rows(array: jax.Array, count: int) -> np.ndarray:
    """The first `count` rows that lie on this process's devices, in the order of the batch."""
    rows: dict[int, jax.Array] = {}  # by their place; a replicated part counts once
    for shard in array.addressable_shards:
        rows.setdefault(shard.index[0].start or 0, shard.data)
    found: list[np.ndarray] = []
    for start in sorted(rows):
        missing = count - sum(map(len, found))
        found.append(jax.device_get(_head(rows[start], missing)))
        if missing <= len(found[-1]):
            break
    return np.concatenate(found)


@functools.partial(jax.jit, static_argnums=1)  # eagerly, bounds would be sent to the device
def _head(array: jax.Array, count: int) -> jax.Array:
    return array[:count]


class GlobalBatches(Iterator[dict[str, jax.Array]]):
    """Puts the batches of `pipeline.Batches` on the devices, some ahead of the step, in a thread.

    If a batch does not divide over the devices, each process's part ends in padding: rows of label
    -1.

    Close it, or use it as a context manager.
    """

    def __init__(self, local: pipeline.Batches, mesh: Mesh, log: BatchLog | None = None):
        self._local, self._mesh, self._log = local, mesh, log
        # (global batch, local batch), or (error, None)
        self._ready: queue.Queue = queue.Queue(_AHEAD)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._fill, daemon=True)
        self._thread.start()

    @property
    def unreadable(self) -> pipeline.Unreadable:
        """The records met so far that could not be read."""
        return self._local.unreadable

    def __next__(self) -> dict[str, jax.Array]:
        found, local = self._ready.get()
        if local is None:
            self._ready.put((found, None))  # the next call raises it again
            raise found
        if self._log:
            self._log.write(local)
        return found

    def _fill(self) -> None:
        while not self._closed.is_set():
            item: tuple[Any, dict[str, np.ndarray] | None]
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
        """Adds rows of label -1, which the queue ignores, up to a multiple of the devices."""
        devices = self._mesh.size // jax.process_count()
        missing = -len(local["label"]) % devices
        if not missing:
            return local
        widths = {name: [(0, missing)] + [(0, 0)] * (x.ndim - 1) for name, x in local.items()}
        padded = {name: np.pad(x, widths[name]) for name, x in local.items()}
        padded["label"][-missing:] = -1
        return padded

    def close(self) -> None:
        """Ends the thread and the workers. Harmless if called twice."""
        self._closed.set()
        self._thread.join()
        self._local.close()

    def __enter__(self) -> "GlobalBatches":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
