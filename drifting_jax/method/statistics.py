"""What a feature's loss is computed with and reports: sums of distances, S, norms of the drift."""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp

SCALE_MINIMUM = 1e-3


@flax.struct.dataclass
class DriftingStatistics:
    """The numbers behind a feature's loss; float32 (float64 for float64 input).

    Those of several features have their axis [f] before the shapes given here.

    Attributes:
      distance_scale: [] S, the weighted mean distance to all targets, before its clip (21).
      drift_mean_square: [n_τ] mean square of each temperature's drift before it is normalised
        (23). It falls to the noise of a finite batch as q approaches p; the loss does not.
      generated_distance: [] mean distance between different generated samples (diversity; 0 when
        g is 1).
      positive_distance: [] mean distance from generated samples to positives.
      effective_positives: [n_τ] mean effective number of positives that pull a sample, which is 0
        where none reaches it (`reach`); None without `DriftOptions.measure_reach`.
      unreached: [n_τ] share of the samples that no positive reaches, or None likewise.
    """

    distance_scale: jax.Array
    drift_mean_square: jax.Array
    generated_distance: jax.Array
    positive_distance: jax.Array
    effective_positives: jax.Array | None = None
    unreached: jax.Array | None = None

    @property
    def without_reach(self) -> "DriftingStatistics":
        """What another step can be computed with."""
        return dataclasses.replace(self, effective_positives=None, unreached=None)

    @property
    def is_degenerate(self) -> jax.Array:
        """[] bool, S is at its clip: the feature hardly varies, and its drift is rounding noise."""
        return self.distance_scale <= SCALE_MINIMUM


@flax.struct.dataclass
class DriftMeans:
    """Means over the drifts of each feature [f, k]; those of equal microbatches average.

    Attributes:
      mean_square: (23), before the drifts are normalised.
      effective_positives, unreached: as in `DriftingStatistics`.
    """

    mean_square: jax.Array
    effective_positives: jax.Array | None = None
    unreached: jax.Array | None = None


@flax.struct.dataclass
class DistanceSums:
    """Sums over pairs of a generated sample and a target; those of microbatches add up.

    Attributes:
      weighted, weight: [f] Σ w·distance and Σ w over all pairs (21); of the squared distance where
        `power` is 2.
      generated, generated_pairs: [f] Σ distance between different generated samples, and their
        number (at least one a sample, so that g = 1 divides 0 by a positive number).
      positive, positive_pairs: [f] the same to positives.
    """

    weighted: jax.Array
    weight: jax.Array
    generated: jax.Array
    generated_pairs: jax.Array
    positive: jax.Array
    positive_pairs: jax.Array
    power: int = flax.struct.field(pytree_node=False, default=1)

    def statistics(self, drifts: DriftMeans) -> DriftingStatistics:
        """Returns the statistics that are logged and shared, given the means of the drifts."""
        return DriftingStatistics(
            distance_scale=self.distance_scale,
            drift_mean_square=drifts.mean_square,
            generated_distance=self.generated / self.generated_pairs,
            positive_distance=self.positive / self.positive_pairs,
            effective_positives=drifts.effective_positives,
            unreached=drifts.unreached,
        )

    @property
    def distance_scale(self) -> jax.Array:
        """[f] S (21), or S₂ of squared distances, before its clip."""
        mean = self.weighted / jnp.maximum(self.weight, jnp.finfo(self.weight.dtype).tiny)
        return mean if self.power == 1 else jnp.sqrt(mean)
