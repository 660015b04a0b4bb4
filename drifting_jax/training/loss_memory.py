"""The memory that the loss of a generator's step takes, however its samples are made in parts."""

import math
from collections.abc import Mapping

import jax
from jax.sharding import Mesh

from drifting_jax.config import ConfigDict
from drifting_jax.method.fields.table import drift_names, field_named
from drifting_jax.training import build
from drifting_jax.training.memory_plan import samples_of_row

_FLOAT32 = 4  # bytes; the loss computes in it


def loss_bytes(
    config: ConfigDict, mesh: Mesh, features: Mapping[str, jax.ShapeDtypeStruct]
) -> float:
    """Returns an estimate of what the loss of all class rows takes on a device at once, in bytes.

    All samples have their features, and the feature for which this is most has its distances, the
    weights of its targets and its drifts for each temperature. Microbatches that are class rows
    divide this; those that are samples of all rows do not (`steps.parts_of_rows`).

    Compiled for an H100, the loss of cifar10:unconditional, with the paper's field, takes 3% more
    than this, and that of :small 3% less.

    Args:
      config: of a generator.
      mesh: the devices, which share the rows or their samples.
      features: {name: [b, t, d]}, shapes.
    """
    t = config.train
    drifts = len(drift_names(build.drift_options(config)))
    weights = drifts if field_named(config.drift.field).gives_weights else 0
    samples, generated = samples_of_row(config), t.generated_per_label
    targets = generated + t.positives_per_label + t.unconditional_per_label

    def of_pairs(shape: tuple[int, ...]) -> int:
        locations, channels = shape[1:]
        pairs = (1 + weights) * generated * targets
        return locations * (pairs + drifts * generated * channels)

    shapes = [x.shape for x in features.values()]
    of_samples = samples * sum(math.prod(shape[1:]) for shape in shapes)
    whole = of_samples + max(of_pairs(shape) for shape in shapes)
    return _FLOAT32 * t.labels_per_step * whole / mesh.size


def is_divided(config: ConfigDict, microbatches: int) -> bool:
    """Whether a microbatch is whole class rows, with the loss of these rows alone."""
    return config.train.labels_per_step % microbatches == 0


def is_single(config: ConfigDict, microbatches: int) -> bool:
    """Whether a step is one class row in one microbatch.

    Its loss is computed while the networks keep what their backward pass needs of all samples.
    """
    return config.train.labels_per_step == 1 and microbatches == 1
