"""Nearest positives: how many of a row there are at a step, and the features that tell them.

The k positives nearest to an anchor, a real sample of the row's class, take the places of k uniform
ones. `rings.nearest_slots` finds them by a feature of a frozen encoder that is computed once, at
the push, and kept in the queue.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from drifting_jax.distributed import class_rows, meshes
from drifting_jax.steps import sample_queue
from drifting_jax.steps.sample_queue import SampleQueue

PyTree = Any

# (frozen variables, images [b, h, w, c] as floats) -> [b, d] float32.
Nearness = Callable[[PyTree, jax.Array], jax.Array]


def count_at(step: jax.Array, *, start: int, share: float, num_steps: int) -> jax.Array:
    """Returns [] int32, k = start·(1 − step / (share·num_steps)), rounded up, at least 0.

    So each of the values start, …, 1 holds for equally many steps, and k is 0 from the step
    share·num_steps on.

    Args:
      step: [] integer.
      start: k of step 0.
      share: of the run, after which k is 0.
      num_steps: of the run.
    """
    last = share * num_steps * np.arange(1, start + 1) / max(start, 1)
    last = np.ceil(np.round(last, 6)).astype(np.int32)  # k falls by one at each of these steps
    return jnp.sum(step < last, dtype=jnp.int32)


def push(
    queue: SampleQueue,
    variables: PyTree,
    batch: Mapping[str, jax.Array],
    nearness: Nearness | None = None,
) -> SampleQueue:
    """Pushes a batch, with features of its images if the queue keeps them.

    Args:
      queue: donated by the caller's jit.
      variables: of the frozen networks.
      batch: {"image": [b, h, w, c], "label": [b]}, as in `sample_queue.push`. With `nearness`, b is
        a multiple of the devices.
      nearness: the feature; None for a queue without.
    """
    if nearness is None:
        return sample_queue.push(queue, batch["image"], batch["label"])
    rows = meshes.batch_sharding(queue.mesh)  # else the networks might be split over channels
    images = jax.lax.with_sharding_constraint(class_rows.to_float(batch["image"]), rows)
    features = jax.lax.with_sharding_constraint(nearness(variables, images), rows)
    return sample_queue.push(queue, batch["image"], batch["label"], features)
