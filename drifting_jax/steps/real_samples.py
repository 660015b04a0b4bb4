"""What the two kinds of queue have in common: a step opens one, draws from it and closes it."""

from collections.abc import Mapping
from typing import Any

import jax

from drifting_jax.steps import dataset_queue, nearest
from drifting_jax.steps.dataset_queue import Dataset, DatasetQueue
from drifting_jax.steps.generator_settings import GeneratorStepConfig
from drifting_jax.steps.sample_queue import SampleQueue

PyTree = Any
Queue = SampleQueue | DatasetQueue  # what a step carries on
Opened = SampleQueue | Dataset  # what it draws from


def open_queue(
    queue: Queue,
    variables: PyTree,
    batch: Mapping[str, jax.Array],
    key: jax.Array,
    nearness: nearest.Nearness | None = None,
) -> Opened:
    """Returns what a step draws from: rings with the batch pushed, or the data set in the batch.

    Args:
      queue: rings are donated by the caller's jit.
      variables: of the frozen networks.
      batch: {"image": ..., "label": ...}, new samples or the whole data set.
      key: the root key of the steps.
      nearness: the feature of nearest positives; see `nearest.push`.
    """
    if isinstance(queue, DatasetQueue):
        return dataset_queue.opened(queue, batch, key)
    return nearest.push(queue, variables, batch, nearness)


def close_queue(opened: Opened, labels: jax.Array, s: GeneratorStepConfig) -> Queue:
    """Returns the queue after a step whose class rows have these labels [c]."""
    if isinstance(opened, Dataset):
        drawn = {"positives": s.positives, "unconditional": s.unconditional}
        return dataset_queue.moved_on(opened, labels, **drawn)
    return opened
