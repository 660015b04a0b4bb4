"""Endless shuffled batches of a source, read with grain: NumPy in, NumPy out.

The order is one global sequence fixed by the seed. A batch of the whole job is a contiguous run of
it, a process reads a contiguous part of that run, so neither the number of processes nor that of
workers changes what the job sees, and a run resumes by the number of batches it has taken.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np

# A few batches ahead hides the reading behind the step; grain's own 500 would fill the memory.
_BATCHES_AHEAD = 4
_THREADS = 2


class Batches(Iterator[dict[str, np.ndarray]]):
    """An endless iterator of batches that can be closed; closing twice is harmless.

    It is also a context manager, which closes on leaving.
    """

    def __init__(self, iterator: Any):
        self._iterator = iterator

    def __next__(self) -> dict[str, np.ndarray]:
        if self._iterator is None:
            raise ValueError("these batches were closed; call batches(...) again")
        # A worker's batch lies in shared memory that it takes back: the caller gets its own copy.
        return {name: np.array(value) for name, value in next(self._iterator).items()}

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


def random_flip(record: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """Mirrors `image` [h,w,c] left to right with probability one half."""
    if rng.random() < 0.5:
        record = {**record, "image": np.ascontiguousarray(record["image"][:, ::-1])}
    return record


def batches(
    source: Any,
    *,
    batch_size: int,
    seed: int,
    start: int = 0,
    flip: bool = False,
    num_workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Batches:
    """Batches of one process, endlessly, in an order that `seed` fixes.

    Every pass over the source is shuffled anew, and a batch may straddle two passes. Flips are
    drawn from the seed and the position in the sequence, so they too are the same on a resume.

    Args:
      source: random access to dicts of arrays, such as `sources.Source`.
      batch_size: records in a batch of the whole job, a multiple of `process_count`.
      seed: of the order and of the flips.
      start: number of batches already taken: the first one handed out is that of step `start`.
      flip: mirror images at random, `random_flip`.
      num_workers: processes that read and decode; 0 reads in threads of this one. Workers need
        absl's flags parsed (`absl.app.run`, or `flags.FLAGS.mark_as_parsed()`).
      process_index: which of the job's processes this is.
      process_count: how many processes share each batch.

    Returns:
      An iterator of dicts of arrays [batch_size / process_count, ...].

    Raises:
      ValueError: an empty source, or sizes that do not fit.
    """
    _check(source, batch_size, start, num_workers, process_index, process_count)
    records = grain.MapDataset.source(source).seed(seed).shuffle().repeat()
    if flip:
        records = records.random_map(random_flip)
    local = records.batch(batch_size // process_count)
    # Local batch step·count + index is this process's part of the job's batch `step`.
    mine = local[start * process_count + process_index :: process_count]
    reading = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_BATCHES_AHEAD)
    iterable = mine.to_iter_dataset(reading)
    if num_workers:
        options = grain.MultiprocessingOptions(num_workers=num_workers)
        iterable = iterable.mp_prefetch(options, worker_init_fn=_ignore_interrupts)
    return Batches(iter(iterable))


def _ignore_interrupts(worker: int, workers: int) -> None:
    """A terminal sends Ctrl-C to the workers as well; the training process ends them itself."""
    del worker, workers
    signal.signal(signal.SIGINT, signal.SIG_IGN)


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
