"""How many positives pull a sample, and which samples none reaches: from a field's weights."""

import jax
import jax.numpy as jnp

from drifting_jax.method.fields.options import DriftOptions
from drifting_jax.method.target_sets import Sets


def reach(sets: Sets, weights: jax.Array, options: DriftOptions) -> tuple[jax.Array, jax.Array]:
    """Returns the effective number of positives of a sample, and the share that none reaches.

    The effective number is 1/Σa² of the positives' shares a in what attracts a sample: from 1, a
    nearest neighbour, to p, a flat kernel. A sample is unreached, and its number 0, if float32
    cannot hold the squares of its positives' weights (below 1e-19); or if all affinities are at the
    floor, so that positives of equal weight pull it alike.

    Args:
      sets: samples and targets.
      weights: [c, t, k, g, n] of the targets in the drifts.
      options: the field and its floor.

    Returns:
      Two means [f, k] over the samples and locations of each feature.
    """
    c, _, _, g, _ = weights.shape
    weights = weights[..., sets.num_negative :]
    total, squares = jnp.sum(weights, axis=-1), jnp.sum(jnp.square(weights), axis=-1)
    tiny = jnp.finfo(weights.dtype).tiny
    is_reached = squares > tiny
    has_floor = options.field == "mean_shift" and options.affinity_floor > 0
    if has_floor and weights.shape[-1] > 1:
        is_reached &= jnp.max(weights, axis=-1) > jnp.min(weights, axis=-1)
    effective = jnp.where(is_reached, jnp.square(total) / jnp.maximum(squares, tiny), 0)

    def mean(of_samples: jax.Array) -> jax.Array:
        lengths = jnp.asarray(sets.lengths, weights.dtype)
        return sets.sums(jnp.sum(of_samples, axis=(0, 3))) / (c * g * lengths[:, None])

    return mean(effective), mean((~is_reached).astype(weights.dtype))
