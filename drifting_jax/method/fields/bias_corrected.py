"""The separate field with a correction of the bias of small sets (ABC, 2604.27239)."""

import dataclasses

import jax
import jax.numpy as jnp

from drifting_jax.method.fields.mean_shift import affinities_of
from drifting_jax.method.fields.options import DriftOptions
from drifting_jax.method.fields.sets import ScaledSets


def bias_corrected(
    sets: ScaledSets, temperature: float | jax.Array, options: DriftOptions
) -> jax.Array:
    """Weights [g, n]: each side's weights a, which sum to 1, become a(1 + a - Σa²).

    They stay positive and sum to 1, and the bias falls from O(1/n) to O(1/n²). The affinities are
    those of `mean_shift` without a floor. Unconditional targets join the negatives with their
    weights before the correction.
    """
    a = affinities_of(sets, temperature, dataclasses.replace(options, affinity_floor=0.0))
    acts = ~sets.excluded

    def corrected(side):
        of_side = a * (acts & side)
        sums = jnp.sum(of_side, axis=1, keepdims=True)
        of_side = of_side / jnp.maximum(sums, jnp.finfo(a.dtype).tiny)
        return of_side * (1 + of_side - jnp.sum(jnp.square(of_side), axis=1, keepdims=True))

    return corrected(sets.attracting) - corrected(~sets.attracting)
