"""Endless shuffled batches of a source, read with grain: NumPy in, NumPy out.

The seed fixes one global sequence of records. A batch of the whole job is a contiguous part of this
sequence, and each process reads a contiguous part of the batch. So the number of processes and of
workers does not change what the job sees, and a run resumes by the number of batches it has taken.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from absl import logging

from drifting_jax.data import workers
from drifting_jax.data.sources import Source
from drifting_jax.data.transforms import Augmentation, UnreadableImage
from drifting_jax.errors import UserError

_CHUNKS_AHEAD = 4  # of each worker; grain's default of 500 would fill the memory
_THREADS = 2
_REPLACEMENTS = 20  # records that are tried in place of an unreadable one


class Unreadable:
    """Counts the records that could not be read, logs each once, and limits their number.

    Args:
      allowed: how many there may be.
      rule: what allows them, for the error, such as "config.data.max_unreadable=0.1 of 90 records".
      known: indices of those that an earlier start of the run has met.
      on_new: called with the index, the name and the reason of each new one.

    Attributes:
      indices: all of them so far.
    """

    def __init__(
        self,
        allowed: float,
        *,
        rule: str = "config.data.max_unreadable",
        known: Iterable[int] = (),
        on_new: Callable[[int, str, str], None] = lambda index, name, reason: None,
    ):
        self.indices = set(known)
        self._allowed, self._rule, self._on_new = allowed, rule, on_new

    def note(self, index: int, name: str, reason: str) -> None:
        """Counts a record. Raises UserError if there are now too many."""
        if index in self.indices:
            return
        self.indices.add(index)
        count = len(self.indices)
        self._on_new(index, name, reason)
        logging.warning(
            "unreadable, another takes its place: %s: %s (%d so far)", name, reason, count
        )
        if count > self._allowed:
            raise UserError(
                f"{count} records could not be read, more than the {int(self._allowed)} that "
                f"{self._rule} allows; the last was {name}: {reason}"
            )


class Batches(Iterator[dict[str, np.ndarray]]):
    """An endless iterator of batches. Close it, or use it as a context manager.

    Attributes:
      unreadable: the records met so far that could not be read.
      chunks_per_batch: in how many parts each batch is read.
    """

    def __init__(
        self,
        iterator: Any,
        source: Source,
        *,
        chunks_per_batch: int,
        unreadable: Unreadable,
        num_workers: int = 0,
    ):
        self._iterator, self._source = iterator, source
        self.chunks_per_batch, self.unreadable = chunks_per_batch, unreadable
        self._num_workers, self._chunks_taken = num_workers, 0

    def __next__(self) -> dict[str, np.ndarray]:
        if self._iterator is None:
            raise ValueError("these batches were closed; call batches(...) again")
        # A worker's chunk lies in shared memory that the worker reuses, so the batch is a copy.
        chunks = [self._next_chunk() for _ in range(self.chunks_per_batch)]
        reasons: list[str] = []
        for chunk in chunks:
            reasons += chunk.pop("reasons") or [""] * len(chunk["index"])
        batch = {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}
        replaced = batch["index"] != batch["read"]
        lost = batch.pop("read") < 0
        for i in np.flatnonzero(replaced | lost):
            index = int(batch["index"][i])
            self.unreadable.note(index, self._source.name(index), reasons[i])
        if lost.any():
            first = int(np.flatnonzero(lost)[0])
            raise UserError(
                f"{_REPLACEMENTS} records in a row could not be read, the first of them "
                f"{self._source.name(int(batch['index'][first]))}: {reasons[first]}; is the disk "
                "there?"
            )
        return batch

    def _next_chunk(self) -> dict[str, Any]:
        self._chunks_taken += 1
        if self._chunks_taken > self._num_workers:  # all workers have started
            with workers.explained(self._num_workers):
                return next(self._iterator)
        with workers.explained(self._num_workers), workers.main_module_hidden():
            return next(self._iterator)

    def close(self) -> None:
        """Stops the threads and the workers. Harmless if called twice."""
        if self._iterator is not None:
            self._iterator.close()
            # grain's iterator prints a traceback if it lives until the interpreter exits.
            self._iterator = None

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def batches(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    start: int = 0,
    augmentation: Augmentation = Augmentation(),  # noqa: B008 (frozen)
    unreadable: Unreadable | None = None,
    num_workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    chunk_bytes: int = 2**24,
) -> Batches:
    """Batches of one process, endlessly, in an order that `seed` fixes.

    Every pass over the source has a new order, and a batch may straddle two passes. Crops, flips
    and latents depend only on the seed and the position in the sequence, so they are the same after
    a resume. An unreadable record is logged and replaced by one that its index chooses.

    Args:
      source: the records.
      batch_size: records in a batch of the whole job, a multiple of `process_count`.
      seed: of the order and of the augmentation.
      start: number of batches already taken, so that the first batch is that of step `start`.
      augmentation: random changes of the images; see `transforms`.
      unreadable: counts the records that cannot be read; None for no limit.
      num_workers: processes that read and decode; 0 reads in threads of this process.
      process_index: number of this process.
      process_count: processes that share each batch.
      chunk_bytes: most bytes that a worker reads at once. Small chunks share a large batch among
        all workers, and need little memory. The batches do not depend on it.

    Returns:
      An iterator of dicts of arrays [batch_size / process_count, ...]: "image" and "label" of the
      source's records, and "index" int64, the records' indices.

    Raises:
      ValueError: the source is empty, or the sizes do not fit.
      TransientError: the workers cannot share memory.
    """
    grain = _grain()
    _check(source, batch_size, start, num_workers, process_index, process_count)
    order = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()
    local = batch_size // process_count
    record_bytes = math.prod(source.image_shape) * source.image_dtype.itemsize
    chunks = _Chunks(
        records=order.random_map(_Load(source, augmentation)),
        first=start * batch_size + process_index * local,
        local=local,
        stride=batch_size,
        size=_chunk_size(local, max(1, chunk_bytes // record_bytes)),
    )
    reading = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_CHUNKS_AHEAD)
    iterable = grain.MapDataset.source(chunks).to_iter_dataset(reading)
    if num_workers:
        options = grain.MultiprocessingOptions(num_workers=num_workers)
        iterable = iterable.mp_prefetch(options, worker_init_fn=workers.start)
        workers.require_parsed_flags()
    with workers.explained(num_workers):
        iterator = iter(iterable)
    return Batches(
        iterator,
        source,
        num_workers=num_workers,
        chunks_per_batch=local // chunks.size,
        unreadable=unreadable or Unreadable(math.inf),
    )


def _grain() -> Any:
    """Grain, which is imported late: its array_record is nothing that a sampler needs.

    With a jaxlib before 0.11 the import warns that workers cannot be profiled. Nobody asked for it.
    """
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        import grain
    finally:
        logging.set_verbosity(verbosity)
    return grain


@dataclasses.dataclass(frozen=True)
class _Load:
    """From an index in the sequence to its record, or to one that replaces it.

    A record also has "index", the index that was asked for, and "read", the index that was read: -1
    if that record and all its replacements are unreadable. "reason" says why the first of them is
    unreadable; "" if it is not.
    """

    source: Source
    augmentation: Augmentation

    def __call__(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        index, reason = int(index), ""
        for at in (index, *self._replacements(index)):
            try:
                record = self.source.draw(at, rng, self.augmentation)
            except UnreadableImage as error:
                reason = reason or str(error) or type(error).__name__
                continue
            except UserError:
                raise
            except Exception as error:  # perhaps of a type that a worker cannot send
                text = f"record {at}: {type(error).__name__}: {error}"
                raise RuntimeError(text) from None
            return {**record, "index": np.int64(index), "read": np.int64(at), "reason": reason}
        blank = np.zeros(self.source.image_shape, self.source.image_dtype)
        record = {"image": blank, "label": np.int32(0)}
        return {**record, "index": np.int64(index), "read": np.int64(-1), "reason": reason}

    def _replacements(self, index: int) -> Iterator[int]:
        """Records that may replace an unreadable one, the same ones every time."""
        other = np.random.default_rng(index)
        return (int(other.integers(len(self.source))) for _ in range(_REPLACEMENTS))


@dataclasses.dataclass(frozen=True)
class _Chunks:
    """Random access to the chunks of one process's batches.

    Attributes:
      records: the whole sequence.
      first: position of this process's first record.
      local: records of each batch that belong to this process.
      stride: positions from one batch to the next.
      size: records of a chunk; divides `local`.
    """

    records: Any
    first: int
    local: int
    stride: int
    size: int

    def __len__(self) -> int:
        return (len(self.records) - self.first) // self.stride * (self.local // self.size)

    def __getitem__(self, chunk: int) -> dict[str, Any]:
        batch, part = divmod(chunk, self.local // self.size)
        start = self.first + batch * self.stride + part * self.size
        records = [self.records[start + i] for i in range(self.size)]
        reasons = [record.pop("reason") for record in records]
        stacked = {name: np.stack([record[name] for record in records]) for name in records[0]}
        # Nothing to send for readable records, of which there are thousands.
        return {**stacked, "reasons": tuple(reasons) if any(reasons) else ()}


def _chunk_size(count: int, most: int) -> int:
    """The largest divisor of `count` that is at most `most`."""
    return max(size for size in range(1, min(count, most) + 1) if count % size == 0)


def _check(
    source: Source,
    batch_size: int,
    start: int,
    num_workers: int,
    process_index: int,
    process_count: int,
) -> None:
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
