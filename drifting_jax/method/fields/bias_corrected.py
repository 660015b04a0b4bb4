"""The separate field with a correction of the bias of small sets (ABC, 2604.27239)."""

import jax
import jax.numpy as jnp

from drifting_jax.method.fields.mean_shift import side_shares
from drifting_jax.method.fields.options import DriftOptions
from drifting_jax.method.fields.sets import ScaledSets


def bias_corrected(
    sets: ScaledSets, temperature: float | jax.Array, options: DriftOptions
) -> jax.Array:
    """Weights [g, n]: each side's weights a, which sum to 1, become a(1 + a - Σa²).

    They stay positive and sum to 1, and the bias falls from O(1/n) to O(1/n²). The weights are
    those of the separate mean shift without a floor. Unconditional targets join the negatives with
    their weights before the correction.
    """

    def corrected(side):
        a = side_shares(sets, temperature, options, side)
        return a * (1 + a - jnp.sum(jnp.square(a), axis=1, keepdims=True))

    return corrected(sets.attracting) - corrected(~sets.attracting)
