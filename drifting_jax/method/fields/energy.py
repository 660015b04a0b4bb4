"""Fields of distances between distributions: energy, over all or the nearest targets, and MMD."""

import jax
import jax.numpy as jnp
import numpy as np

from drifting_jax.method.fields import sides
from drifting_jax.method.fields.options import DriftOptions
from drifting_jax.method.fields.sets import ScaledSets, excluded_pairs

_ALMOST = 0.95  # share of the unbiased score in the almost-fair one


def energy(sets: ScaledSets, temperature: float | jax.Array, options: DriftOptions) -> jax.Array:
    """Weights [g, n] of V = mean (y - x)/r - mean (z - x)/r, the energy (Riesz) field.

    Where a sample stays among its negatives ("kept"), V is minus g times the gradient of half the
    squared energy distance. With `options.neighbours` k both means run over the k nearest targets
    of each side alone. Guidance is linear. There is no temperature.
    """
    del temperature
    direction = sides.inverse_distance(sets)

    def attraction(acts):
        if not options.neighbours:
            return sides.mean(sets, acts) * direction
        return _nearest_mean(sets, acts, options.neighbours) * direction

    return sides.linear_guidance(sets, attraction)


def _nearest_mean(sets: ScaledSets, acts: np.ndarray, count: int) -> jax.Array:
    """[g, n] weights of the mean over the nearest targets of each sample, itself left out."""
    if sets.negatives == "kept":  # a sample would take a place among its own neighbours
        g, n = acts.shape
        acts = acts & ~excluded_pairs(g, n, sets.num_generated, "own")
    distance = jnp.where(acts, sets.distance, jnp.inf)
    most = int(acts.sum(axis=1).max(initial=0))
    if count < most:
        farthest = -jax.lax.top_k(-distance, count)[0][:, -1:]
        acts = acts & (distance <= farthest)
    return sides.mean(sets, acts)


def fair_energy(
    sets: ScaledSets, temperature: float | jax.Array, options: DriftOptions
) -> jax.Array:
    """Weights [g, n] of the almost-fair energy score of each positive (2412.15832).

    V = mean (y - x)/r - (1 - (1 - a)/g)·mean over other samples (z - x)/r, a = 0.95. It is for
    conditions with a single positive. Guidance is linear. There is no temperature.
    """
    del temperature, options
    direction = sides.inverse_distance(sets)
    fairness = 1 - (1 - _ALMOST) / sets.num_generated
    share = jnp.where(sets.repelling, fairness, 1).astype(direction.dtype)
    return share[None] * sides.linear_guidance(
        sets, lambda acts: sides.mean(sets, acts) * direction
    )


def mmd(sets: ScaledSets, temperature: float | jax.Array, options: DriftOptions) -> jax.Array:
    """Weights [g, n] of V = (mean k·(y - x) - mean k·(z - x))/τ², Gaussian kernel.

    Where a sample stays among its negatives ("kept"), V is minus g/2 times the gradient of the
    squared maximum mean discrepancy. Guidance is linear.
    """
    del options
    kernel = jnp.exp(-0.5 * jnp.square(sets.distance / temperature)) / jnp.square(temperature)
    return sides.linear_guidance(sets, lambda acts: sides.mean(sets, acts) * kernel)
