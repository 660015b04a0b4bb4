"""Sliced Wasserstein drift: each sample goes to the target of its rank, in random directions."""

import jax
import jax.numpy as jnp

from drifting_jax.method.fields.options import DriftOptions
from drifting_jax.method.fields.sets import ScaledSets


def sliced(sets: ScaledSets, temperature: float | jax.Array, options: DriftOptions) -> jax.Array:
    """V [g, d]: mean over directions θ of (t - θ·x)·θ, t the projected target of the same rank.

    Positives of another number than the samples are read at the samples' quantiles. Samples spread
    by their ranks, so no negatives are needed; guidance adds (α - 1)(V_y - V_o). There is no
    temperature, and the targets' weights are not used.

    Raises:
      ValueError: there is no key to draw directions from.
    """
    del temperature
    if sets.key is None:
        raise ValueError("the field 'sliced' draws directions and needs a key")
    d = sets.samples.shape[1]
    directions = jax.random.normal(sets.key, (options.projections, d), sets.samples.dtype)
    directions /= jnp.linalg.norm(directions, axis=1, keepdims=True)
    projected = _project(directions, sets.samples)  # [l, g]
    rank = jnp.argsort(jnp.argsort(projected, axis=1), axis=1)

    def moved(targets: jax.Array) -> jax.Array:
        quantiles = _at_ranks(jnp.sort(_project(directions, targets), axis=1), len(sets.samples))
        distance = jnp.take_along_axis(quantiles, rank, axis=1) - projected
        total = jnp.einsum("lg,ld->gd", distance, directions, precision=jax.lax.Precision.HIGHEST)
        return total / options.projections

    attracted = moved(sets.targets[sets.num_negative :])
    if sets.num_negative == sets.num_generated:
        return attracted
    unconditional = moved(sets.targets[sets.num_generated : sets.num_negative])
    return attracted + sets.guidance * (attracted - unconditional)


def _project(directions: jax.Array, points: jax.Array) -> jax.Array:
    return jnp.einsum("ld,nd->ln", directions, points, precision=jax.lax.Precision.HIGHEST)


def _at_ranks(ordered: jax.Array, count: int) -> jax.Array:
    """[l, count] of [l, n] sorted numbers: their quantiles at the middle of each rank."""
    n = ordered.shape[1]
    if n == count:
        return ordered
    place = (jnp.arange(count) + 0.5) / count * n - 0.5
    place = jnp.clip(place, 0, n - 1)
    below = jnp.floor(place).astype(jnp.int32)
    share = (place - below).astype(ordered.dtype)
    above = jnp.minimum(below + 1, n - 1)
    return ordered[:, below] * (1 - share)[None] + ordered[:, above] * share[None]
