"""Endless shuffled batches of a source, read with grain: NumPy in, NumPy out.

The order is one global sequence fixed by the seed. A batch of the whole job is a contiguous run of
it, a process reads a contiguous part of that run, so neither the number of processes nor that of
workers changes what the job sees, and a run resumes by the number of batches it has taken.
"""

from __future__ import annotations

import dataclasses
import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import grain
import numpy as np
from absl import logging

from drifting_jax.data.transforms import Augmentation, UnreadableImage, augment
from drifting_jax.errors import UserError

# What is read at once, so that every worker has a share of a large batch and memory stays small.
_PIECE_BYTES = 2**24
_PIECES_AHEAD = 4  # of each worker; grain's own 500 would fill the memory
_THREADS = 2
_REPLACEMENTS = 20  # records tried in the place of an unreadable one


class Unreadable:
    """Records that could not be read, each logged once, and a limit on their number.

    Args:
      allowed: how many there may be.
      known: indices of those of which a run has heard before.
      tell: given the index and name of each new one.
    """

    def __init__(
        self,
        allowed: float,
        *,
        known: Iterable[int] = (),
        tell: Callable[[int, str], None] = lambda index, name: None,
    ):
        self.indices = set(known)
        self._allowed, self._tell = allowed, tell

    def note(self, index: int, name: str) -> None:
        """Raises UserError where there are too many."""
        if index in self.indices:
            return
        self.indices.add(index)
        count = len(self.indices)
        self._tell(index, name)
        logging.warning("unreadable, another takes its place: %s (%d so far)", name, count)
        if count > self._allowed:
            raise UserError(
                f"{count} records could not be read, more than config.data.max_unreadable allows; "
                f"the last was {name}"
            )


class Batches(Iterator[dict[str, np.ndarray]]):
    """An endless iterator of batches that can be closed; closing twice is harmless.

    It is also a context manager, which closes on leaving.

    Attributes:
      unreadable: the records met so far that could not be read.
    """

    def __init__(self, iterator: Any, source: Any, *, pieces: int, unreadable: Unreadable):
        self._iterator, self._source, self._pieces = iterator, source, pieces
        self.unreadable = unreadable

    def __next__(self) -> dict[str, np.ndarray]:
        if self._iterator is None:
            raise ValueError("these batches were closed; call batches(...) again")
        # A worker's piece lies in shared memory that it takes back: the caller gets its own copy.
        pieces = [next(self._iterator) for _ in range(self._pieces)]
        batch = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
        replaced = batch["index"] != batch["read"]
        for index in batch["index"][replaced | (batch["read"] < 0)]:
            self.unreadable.note(int(index), self._name(int(index)))
        if (batch.pop("read") < 0).any():
            raise UserError(
                f"{_REPLACEMENTS} records in a row could not be read, the first of them "
                f"{self._name(int(index))}: is the disk there?"
            )
        return batch

    def _name(self, index: int) -> str:
        return self._source.name(index) if hasattr(self._source, "name") else f"record {index}"

    def close(self) -> None:
        """Stops the threads and the workers."""
        if self._iterator is not None:
            self._iterator.close()
            # Let go of it now: freed as the interpreter exits, grain's iterator prints a traceback.
            self._iterator = None

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


@dataclasses.dataclass(frozen=True)
class _Load:
    """From an index in the sequence to a record, itself or one in its place."""

    source: Any
    augmentation: Augmentation

    def __call__(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        index = int(index)
        for at in (index, *self._others(index)):
            try:
                return {**self._read(at, rng), "index": np.int64(index), "read": np.int64(at)}
            except UnreadableImage:
                continue
            except UserError:
                raise
            except Exception as error:  # which may be of a kind that a worker cannot send
                text = f"record {at}: {type(error).__name__}: {error}"
                raise RuntimeError(text) from None
        dtype = getattr(self.source, "image_dtype", np.uint8)
        blank = {"image": np.zeros(self.source.image_shape, dtype), "label": np.int32(0)}
        return {**blank, "index": np.int64(index), "read": np.int64(-1)}

    def _read(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        if hasattr(self.source, "draw"):
            return self.source.draw(index, rng, self.augmentation)
        record = self.source[index]
        if self.augmentation != Augmentation():
            image = augment(record["image"], self.augmentation, rng)
            record = {**record, "image": image}
        return record

    def _others(self, index: int) -> Iterator[int]:
        """Records that may take the place of an unreadable one: the same ones every time."""
        other = np.random.default_rng(index)
        return (int(other.integers(len(self.source))) for _ in range(_REPLACEMENTS))


def batches(
    source: Any,
    *,
    batch_size: int,
    seed: int,
    start: int = 0,
    augmentation: Augmentation = Augmentation(),  # noqa: B008 (frozen)
    unreadable: Unreadable | None = None,
    num_workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Batches:
    """Batches of one process, endlessly, in an order that `seed` fixes.

    Every pass over the source is shuffled anew, and a batch may straddle two passes. Crops, flips
    and latents are drawn from the seed and the position in the sequence, so they too are the same
    on a resume. A record that cannot be read is logged, and one chosen from its index stands in its
    place.

    Args:
      source: random access to dicts of arrays, such as `sources.Source`.
      batch_size: records in a batch of the whole job, a multiple of `process_count`.
      seed: of the order and of the augmentation.
      start: number of batches already taken: the first one handed out is that of step `start`.
      augmentation: what is done to an image at random; see `transforms`.
      unreadable: what keeps count of the records that cannot be read; None for no limit.
      num_workers: processes that read and decode; 0 reads in threads of this one. Workers need
        absl's flags parsed (`absl.app.run`, or `flags.FLAGS.mark_as_parsed()`).
      process_index: which of the job's processes this is.
      process_count: how many processes share each batch.

    Returns:
      An iterator of dicts of arrays [batch_size / process_count, ...]: the source's, and the
      records' "index" int64.

    Raises:
      ValueError: an empty source, or sizes that do not fit.
    """
    _check(source, batch_size, start, num_workers, process_index, process_count)
    order = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()
    records = order.random_map(_Load(source, augmentation))
    local = batch_size // process_count
    pieces = _Pieces(
        records,
        first=start * batch_size + process_index * local,
        local=local,
        stride=batch_size,
        size=_piece_size(local, math.prod(getattr(source, "image_shape", (1,)))),
    )
    reading = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_PIECES_AHEAD)
    iterable = grain.MapDataset.source(pieces).to_iter_dataset(reading)
    if num_workers:
        options = grain.MultiprocessingOptions(num_workers=num_workers)
        iterable = iterable.mp_prefetch(options, worker_init_fn=_in_worker)
    return Batches(
        iter(iterable),
        source,
        pieces=local // pieces.size,
        unreadable=unreadable or Unreadable(math.inf),
    )


@dataclasses.dataclass(frozen=True)
class _Pieces:
    """Random access to the pieces of one process's batches.

    Attributes:
      records: the whole sequence.
      first: position of this process's first record.
      local: records of each batch that are this process's.
      stride: positions from one batch to the next.
      size: records of a piece; divides `local`.
    """

    records: Any
    first: int
    local: int
    stride: int
    size: int

    def __len__(self) -> int:
        return (len(self.records) - self.first) // self.stride * (self.local // self.size)

    def __getitem__(self, piece: int) -> dict[str, np.ndarray]:
        batch, part = divmod(piece, self.local // self.size)
        start = self.first + batch * self.stride + part * self.size
        records = [self.records[start + i] for i in range(self.size)]
        return {name: np.stack([record[name] for record in records]) for name in records[0]}


def _piece_size(count: int, record_bytes: int) -> int:
    """The largest divisor of `count` whose records take no more than _PIECE_BYTES, at least 1."""
    fits = max(1, _PIECE_BYTES // record_bytes)
    return max(size for size in range(1, min(count, fits) + 1) if count % size == 0)


def _in_worker(worker: int, workers: int) -> None:
    """A worker ends with the training process, however that ends, and by no signal of its own.

    Terminals and job systems signal a whole group, while the training process still wants batches
    to save by. Of one that was killed the workers would stay, and their shared memory too.
    """
    del worker, workers
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def end_with_parent() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _check(source, batch_size, start, num_workers, process_index, process_count) -> None:
    if len(source) == 0:
        raise ValueError("the source is empty; expected at least one record")
    if process_count < 1 or not 0 <= process_index < process_count:
        raise ValueError(
            "process_index must lie in 0..process_count-1, "
            f"found {process_index} of {process_count} processes"
        )
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(
            f"batch_size must be a positive multiple of the {process_count} processes, "
            f"found {batch_size}"
        )
    if start < 0 or num_workers < 0:
        raise ValueError(
            f"start and num_workers must not be negative, found {start} and {num_workers}"
        )
