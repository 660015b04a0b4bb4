"""Fills the sample queue before the first step, and checks that every class has enough samples."""

from collections.abc import Callable, Sequence

import numpy as np
from absl import logging

from drifting_jax.config import ConfigDict
from drifting_jax.data.sources import Source
from drifting_jax.errors import UserError
from drifting_jax.steps import sample_queue
from drifting_jax.steps.sample_queue import SampleQueue
from drifting_jax.training import device_batches
from drifting_jax.workdir.progress import progress_bar


def fill(
    queue: SampleQueue,
    batches: device_batches.GlobalBatches,
    source: Source,
    batch_size: int,
    *,
    is_main_process: bool = False,
    stopped: Callable[[int], bool] = lambda step: False,
) -> tuple[SampleQueue, int] | None:
    """Pushes batches until every ring is full, for one pass over the data at most.

    Args:
      queue: empty.
      batches: of `batch_size` records of the source.
      source: the data.
      batch_size: records in a batch.
      is_main_process: whether to show progress.
      stopped: called with the number of batches taken; True stops the filling.

    Returns:
      The queue and the number of batches taken; None if it was stopped.
    """
    per_class = queue.by_class.images.shape[1]
    room = queue.num_classes * per_class + len(queue.unconditional.images)
    taken = 0
    with progress_bar(room, description="queue", enabled=is_main_process) as bar:
        for taken in range(-(-len(source) // batch_size)):
            if stopped(taken):
                if is_main_process:
                    logging.warning("Stopped before the queue was full: its filling begins anew")
                return None
            if taken % 16 == 0:
                filled = np.asarray(queue.by_class.filled)[: queue.num_classes]
                unconditional = int(queue.unconditional.filled)
                bar.update(int(filled.sum()) + unconditional - bar.n)
                if filled.min() == per_class and unconditional == len(queue.unconditional.images):
                    return queue, taken
            batch = next(batches)
            queue = sample_queue.push(queue, batch["image"], batch["label"])
    return queue, taken + 1


def check_source(config: ConfigDict, source: Source) -> None:
    """Checks, before anything is trained, that the data holds enough samples of every class.

    If the labels need a pass over all records, only `check_queue` checks.

    Raises:
      UserError: some classes hold too few samples; the message names them.
    """
    if not source.labels_are_cheap:
        return
    counts = np.bincount(source.labels, minlength=source.num_classes)
    _require_enough(config, counts, len(source), source.class_names, place="the data")


def check_queue(config: ConfigDict, queue: SampleQueue, class_names: Sequence[str]) -> None:
    """Checks, on the host, that a filled queue holds enough samples for the draws.

    Raises:
      UserError: some classes, or the ring of unconditional samples, hold too few.
    """
    filled = np.asarray(queue.by_class.filled)[: queue.num_classes]
    found = int(queue.unconditional.filled)
    _require_enough(config, filled, found, class_names, place="the queue")


def _require_enough(
    config: ConfigDict, counts: np.ndarray, total: int, class_names: Sequence[str], *, place: str
) -> None:
    t, repeats = config.train, config.queue.allow_repeats
    least = min(t.positives_per_label, 1) if repeats else t.positives_per_label
    short = np.flatnonzero(counts < least)
    if short.size:
        listed = ", ".join(f"{class_names[label]} ({counts[label]})" for label in short[:10])
        raise UserError(
            f"expected at least {least} samples of each class in {place}, found fewer of "
            f"{short.size} classes: {listed}{', …' * (short.size > 10)}; draw fewer "
            "(--config.train.positives_per_label) or let draws repeat "
            "(--config.queue.allow_repeats=True)"
        )
    least = min(t.unconditional_per_label, 1) if repeats else t.unconditional_per_label
    if total < least:
        raise UserError(
            f"expected at least {least} samples of any class in {place}, found {total}; draw fewer "
            "(--config.train.unconditional_per_label) or let draws repeat "
            "(--config.queue.allow_repeats=True)"
        )
