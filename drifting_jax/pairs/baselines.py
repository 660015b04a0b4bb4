"""What a generator of pairs is compared with: samples that need no training, of the pairs alone."""

import numpy as np

from drifting_jax.data.neighbours import nearest_of
from drifting_jax.evaluation.metrics.single_target import measure_samples
from drifting_jax.pairs.data import Pairs, as_floats
from drifting_jax.steps.scaling import Scaling

_NEAREST = 2  # the least with which the spread of the samples is measured


def measure_baselines(kept: Pairs, some: Pairs, scaling: Scaling) -> dict[str, dict[str, float]]:
    """Returns `measure_samples` of samples that come from the training pairs themselves.

    Args:
      kept: the training pairs.
      some: pairs that are held out, which are measured.
      scaling: of the conditions; distances are between scaled ones.

    Returns:
      {"nearest_pairs": metrics of the images of the two nearest training conditions as the samples,
      "mean_image": those of the mean training image}. The first is left out for a single pair.
    """
    targets, images = as_floats(some.images), kept.images
    mean = images.mean(axis=0, dtype=np.float64)
    mean = mean / 127.5 - 1 if images.dtype == np.uint8 else mean
    shape = (len(targets), 2, *targets.shape[1:])
    found = {"mean_image": np.broadcast_to(mean.astype(np.float32), shape)}
    if len(images) >= _NEAREST:
        flat, others = (
            scaling.scaled(pairs.conditions).reshape(len(pairs.conditions), -1)
            for pairs in (some, kept)
        )
        found = {"nearest_pairs": as_floats(images[nearest_of(flat, others, _NEAREST)]), **found}
    return {name: measure_samples(samples, targets) for name, samples in found.items()}
