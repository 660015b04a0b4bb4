"""Lookahead: further drifts from where the drifts before have moved the samples (2605.04060)."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from drifting_jax.method.fields.options import DriftOptions
from drifting_jax.method.fields.sets import ScaledSets, own_pairs, pairwise_distance


def lookahead(
    field: Callable[[ScaledSets, float | jax.Array, DriftOptions], jax.Array],
    sets: ScaledSets,
    temperature: float | jax.Array,
    options: DriftOptions,
) -> jax.Array:
    """V [1 + lookahead, g, d] at the samples and at the places that they are moved to in turn.

    The paper leaves the step open. Here a sample moves by `lookahead_stride` times the difference
    of the mean target that attracts it and the mean target that repels it; samples that are their
    own negatives move as negatives too, and S stays that of the samples.

    Args:
      field: gives weights [g, n].
      sets: of one row and location.
      temperature: τ.
      options: `lookahead`, `lookahead_stride`, and what the field reads.
    """
    found = []
    for term in range(options.lookahead + 1):
        weights = field(sets, temperature, options)
        found.append(_moved(sets, weights))
        if term < options.lookahead:
            sets = _further(sets, options.lookahead_stride * _displacement(sets, weights))
    return jnp.stack(found)


def _moved(sets: ScaledSets, weights: jax.Array) -> jax.Array:
    targets = jnp.einsum("gn,nd->gd", weights, sets.targets, precision=jax.lax.Precision.HIGHEST)
    return targets - jnp.sum(weights, axis=1, keepdims=True) * sets.samples


def _displacement(sets: ScaledSets, weights: jax.Array) -> jax.Array:
    """[g, d]: each side's weights divided by their sum, as the separate field has them."""
    tiny = jnp.finfo(weights.dtype).tiny
    sides = [jnp.maximum(weights, 0), jnp.maximum(-weights, 0)]
    attracted, repelled = (
        side / jnp.maximum(jnp.sum(side, axis=1, keepdims=True), tiny) for side in sides
    )
    # Stored before it is used: XLA for GPUs would join this product with that of V.
    return _moved(sets, jax.lax.optimization_barrier(attracted - repelled))


def _further(sets: ScaledSets, step: jax.Array) -> ScaledSets:
    """The sets after the samples have moved by a step [g, d]."""
    samples, targets = sets.samples + step, sets.targets
    are_own = sets.negatives != "fresh"
    if are_own:
        # A sum in place of a concatenation, which XLA for GPUs may compile wrongly in a fusion.
        targets = targets + jnp.pad(step, ((0, len(targets) - len(step)), (0, 0)))
    own = own_pairs(*sets.distance.shape) & are_own
    distance = pairwise_distance(samples, targets, ignored=own) / targets.shape[1] ** 0.5
    distance = jnp.where(own, sets.distance, distance)
    return dataclasses.replace(sets, samples=samples, targets=targets, distance=distance)
