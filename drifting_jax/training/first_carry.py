"""What a carry holds before the first step: stale negatives, and statistics of a step before."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from drifting_jax.config import ConfigDict
from drifting_jax.distributed import class_rows, meshes
from drifting_jax.method.statistics import DriftingStatistics
from drifting_jax.steps import dataset_queue
from drifting_jax.steps.dataset_queue import DatasetQueue
from drifting_jax.steps.generator_step import first_negatives, first_statistics
from drifting_jax.training.program import Carry

PyTree = Any


def negatives_template(
    config: ConfigDict, mesh: Mesh, of_sample: Mapping[str, jax.ShapeDtypeStruct]
) -> PyTree:
    """Returns the shapes of stale negatives: features of all generated samples of a step."""
    c, g = config.train.labels_per_step, config.train.generated_per_label
    sharding = class_rows.real_sharding(mesh, c, g)
    return {
        name: jax.ShapeDtypeStruct((c, g, *x.shape[1:]), x.dtype, sharding=sharding)
        for name, x in of_sample.items()
    }


def _opened(given: Mapping[str, Any], carry: Carry, batch: Mapping[str, jax.Array] | None):
    """The queue of a carry as a step draws from it, without new samples."""
    if isinstance(carry.queue, DatasetQueue):
        assert batch is not None  # it holds the samples
        return dataset_queue.opened(carry.queue, batch, given["key"])
    return carry.queue


def statistics_of(
    given: Mapping[str, Any], carry: Carry, variables: PyTree, batch: PyTree
) -> dict[str, DriftingStatistics]:
    """Returns `first_statistics` of a carry; `given` is what it takes by name."""
    queue = _opened(given, carry, batch)
    return first_statistics(carry.state, queue, variables, stale=carry.negatives, **given)


def _first_negatives(given: Mapping[str, Any], carry: Carry, variables: PyTree, batch: PyTree):
    return first_negatives(carry.state, _opened(given, carry, batch), variables, **given)


def preparing(template: Carry, given: Mapping[str, Any], mesh: Mesh) -> Callable[..., Carry] | None:
    """Returns what gives a carry its negatives and statistics before the first step, if it has any.

    Args:
      template: the carry of the steps.
      given: what `first_negatives` and `first_statistics` take by name.
      mesh: the devices.
    """
    if template.negatives is None and template.statistics is None:
        return None
    shardings = jax.tree.map(lambda x: x.sharding, template.negatives)
    draw = jax.jit(functools.partial(_first_negatives, given), out_shardings=shardings)
    measure = jax.jit(
        functools.partial(statistics_of, given), out_shardings=meshes.replicated(mesh)
    )

    def prepare(
        carry: Carry, variables: PyTree, batch: Mapping[str, jax.Array] | None = None
    ) -> Carry:
        if template.negatives is not None:
            carry = dataclasses.replace(carry, negatives=draw(carry, variables, batch))
        if template.statistics is not None:
            carry = dataclasses.replace(carry, statistics=measure(carry, variables, batch))
        return carry

    return prepare
