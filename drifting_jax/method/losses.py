"""The drifting loss: a frozen, drifted target and a mean square, (6), (18)-(26), (36).

A feature is [c, n, t, d]: class rows, samples, locations, channels. Every row and location has its
own field. The distance scale S and the norm of the drift are shared by all of them, so they are
computed here, between the passes, and never inside the `vmap`. A batch in microbatches (over class
rows) adds up `distance_sums`, then `drift_sums`, and then averages `drifted_loss` over the
microbatches (`feature_losses`).
"""

import flax.struct
import jax
import jax.numpy as jnp

from drifting_jax.method.fields.options import DriftOptions
from drifting_jax.method.fields.sets import ScaledSets, own_pairs, pairwise_distance
from drifting_jax.method.fields.table import field_named

SQUARED_DISTANCE_MINIMUM = 1e-8
SCALE_MINIMUM = 1e-3
DRIFT_MEAN_SQUARE_MINIMUM = 1e-8


@flax.struct.dataclass
class DriftingStatistics:
    """The numbers behind one feature's loss; float32 (float64 for float64 input).

    Attributes:
      distance_scale: [] S, the weighted mean distance to all targets, before its clip (21).
      drift_mean_square: [n_τ] mean square of each temperature's drift before it is normalised
        (23). It falls to the noise of a finite batch as q approaches p; the loss does not.
      generated_distance: [] mean distance between different generated samples (diversity; 0 when
        g is 1).
      positive_distance: [] mean distance from generated samples to positives.
    """

    distance_scale: jax.Array
    drift_mean_square: jax.Array
    generated_distance: jax.Array
    positive_distance: jax.Array

    @property
    def is_degenerate(self) -> jax.Array:
        """[] bool, S is at its clip: the feature hardly varies, and its drift is rounding noise."""
        return self.distance_scale <= SCALE_MINIMUM


@flax.struct.dataclass
class DistanceSums:
    """Sums over pairs of a generated sample and a target; those of microbatches add up.

    Attributes:
      weighted, weight: [] Σ w·distance and Σ w over all pairs (21).
      generated, generated_pairs: [] Σ distance between different generated samples, and their
        number (at least one a sample, so that g = 1 divides 0 by a positive number).
      positive, positive_pairs: [] the same to positives.
    """

    weighted: jax.Array
    weight: jax.Array
    generated: jax.Array
    generated_pairs: jax.Array
    positive: jax.Array
    positive_pairs: jax.Array

    def statistics(self, drift_mean_square: jax.Array) -> DriftingStatistics:
        """Returns the statistics that are logged and shared, given the drifts' mean squares."""
        return DriftingStatistics(
            distance_scale=self.distance_scale,
            drift_mean_square=drift_mean_square,
            generated_distance=self.generated / self.generated_pairs,
            positive_distance=self.positive / self.positive_pairs,
        )

    @property
    def distance_scale(self) -> jax.Array:
        """[] S (21), before its clip."""
        return self.weighted / jnp.maximum(self.weight, jnp.finfo(self.weight.dtype).tiny)


@flax.struct.dataclass
class Sets:
    """One feature's samples and targets, in the order of the released code: generated first.

    Attributes:
      targets: [c, n, t, d], n = g + u + p, centred per row and location.
      weights: [c, n].
      num_generated: g.
      num_negative: g + u, the targets that repel.
    """

    targets: jax.Array
    weights: jax.Array
    num_generated: int = flax.struct.field(pytree_node=False)
    num_negative: int = flax.struct.field(pytree_node=False)

    @property
    def generated(self) -> jax.Array:
        return self.targets[:, : self.num_generated]


def make_sets(
    generated: jax.Array,
    positive: jax.Array,
    unconditional: jax.Array | None = None,
    *,
    generated_weight: jax.Array | None = None,
    positive_weight: jax.Array | None = None,
    unconditional_weight: jax.Array | None = None,
) -> Sets:
    """Checks shapes and gathers all targets, under stop-gradient. Shapes as in `drifting_loss`."""
    if unconditional is None:
        unconditional = generated[:, :0]
    groups = {"generated": generated, "unconditional": unconditional, "positive": positive}
    for name, a in groups.items():
        if a.ndim != 4 or a.shape[0] != generated.shape[0] or a.shape[2:] != generated.shape[2:]:
            raise ValueError(
                f"{name} must be [c, n, t, d] with the c, t, d of generated; "
                f"found {name} {a.shape} and generated {generated.shape}"
            )
        if 0 in a.shape and not (name == "unconditional" and a.shape[1] == 0):
            raise ValueError(f"{name} is empty: found shape {a.shape}; every axis needs an entry")
    dtype = jnp.promote_types(jnp.result_type(*groups.values()), jnp.float32)
    given = {
        "generated": generated_weight,
        "unconditional": unconditional_weight,
        "positive": positive_weight,
    }
    weights = []
    for name, w in given.items():
        expected = groups[name].shape[:2]
        if w is not None and jnp.shape(w) != expected:
            raise ValueError(f"{name}_weight must be {expected}; found {jnp.shape(w)}")
        weights.append(jnp.ones(expected, dtype) if w is None else jnp.asarray(w, dtype))
    joined = jax.lax.stop_gradient(
        jnp.concatenate([a.astype(dtype) for a in groups.values()], axis=1)
    )
    # Stored before it is used: fused into reductions, a concatenation makes XLA for GPUs fail in
    # its Triton rewriter (jax 0.10).
    targets = jax.lax.optimization_barrier(joined)
    return Sets(
        targets=targets - jnp.mean(targets, axis=1, keepdims=True),
        weights=jax.lax.stop_gradient(jnp.concatenate(weights, axis=1)),
        num_generated=generated.shape[1],
        num_negative=generated.shape[1] + unconditional.shape[1],
    )


def distances(sets: Sets) -> jax.Array:
    """Returns [c, t, g, n] distances of generated samples to all targets; own pairs are 1e-4."""

    def one_set(generated: jax.Array, targets: jax.Array) -> jax.Array:
        own = own_pairs(generated.shape[0], targets.shape[0])
        distance = pairwise_distance(
            generated, targets, squared_minimum=SQUARED_DISTANCE_MINIMUM, ignored=own
        )
        return jnp.where(own, jnp.asarray(SQUARED_DISTANCE_MINIMUM**0.5, distance.dtype), distance)

    over_locations = jax.vmap(one_set, in_axes=1)
    return jax.vmap(over_locations)(sets.generated, sets.targets)


def distance_sums(distance: jax.Array, sets: Sets) -> DistanceSums:
    """Sums `distances` [c, t, g, n] for the distance scale S (21) and the diversity."""
    c, t, g, n = distance.shape
    positives = n - sets.num_negative
    own = c * t * g * SQUARED_DISTANCE_MINIMUM**0.5
    dtype = distance.dtype
    return DistanceSums(
        weighted=jnp.sum(distance * sets.weights[:, None, None]),
        weight=jnp.sum(sets.weights) * (t * g),
        generated=jnp.sum(distance[..., :g]) - own,
        generated_pairs=jnp.asarray(float(c * t * g * max(g - 1, 1)), dtype),
        positive=jnp.sum(distance[..., sets.num_negative :]),
        positive_pairs=jnp.asarray(float(c * t * g * positives), dtype),
    )


def _scales(distance_scale: jax.Array, d: int) -> tuple[jax.Array, jax.Array]:
    """S for distances and S/√d for coordinates, both clipped."""
    return (
        jnp.maximum(distance_scale, SCALE_MINIMUM),
        jnp.maximum(distance_scale / d**0.5, SCALE_MINIMUM),
    )


def raw_drifts(
    sets: Sets, distance: jax.Array, distance_scale: jax.Array, options: DriftOptions
) -> jax.Array:
    """Returns [n_τ, c, t, g, d] drifts in scaled coordinates, not yet normalised (A.6).

    Args:
      sets: samples and targets.
      distance: [c, t, g, n] of `distances`.
      distance_scale: [] S, over the whole batch.
      options: the field and its temperatures.
    """
    for_distance, for_coordinates = _scales(distance_scale, sets.targets.shape[-1])
    field = field_named(options.field)

    def one_set(targets: jax.Array, distance: jax.Array, weights: jax.Array) -> jax.Array:
        scaled = ScaledSets(
            targets=targets / for_coordinates,
            distance=distance / for_distance,
            weights=weights,
            num_generated=sets.num_generated,
            num_negative=sets.num_negative,
        )
        return jnp.stack([field(scaled, tau, options) for tau in options.temperatures])

    over_locations = jax.vmap(one_set, in_axes=(1, 0, None), out_axes=1)
    return jax.vmap(over_locations, out_axes=1)(sets.targets, distance, sets.weights)


def drift_sums(drifts: jax.Array) -> jax.Array:
    """Returns [n_τ] Σ drift² over all entries; their number makes it the mean square of (23)."""
    return jnp.sum(jnp.square(drifts), axis=(1, 2, 3, 4))


def drifted_loss(
    generated: jax.Array,
    drifts: jax.Array,
    distance_scale: jax.Array,
    drift_mean_square: jax.Array,
) -> jax.Array:
    """Mean square between samples and their frozen drifted selves (25), (26).

    Written as ((x - stopgrad(x))/S' - ΣV)²: the value and the gradient (36) of the paper's
    (x/S' - stopgrad(x/S' + ΣV))² without the rounding of adding V to x and taking x away again.

    Args:
      generated: [c, g, t, d], the only argument that gradients reach.
      drifts: [n_τ, c, t, g, d] from `raw_drifts`.
      distance_scale: [], drift_mean_square: [n_τ], over the whole batch.

    Returns:
      [] loss, at least float32.
    """
    norm = jnp.sqrt(jnp.maximum(drift_mean_square, DRIFT_MEAN_SQUARE_MINIMUM))
    total = jnp.sum(drifts / norm[:, None, None, None, None], axis=0).swapaxes(1, 2)  # [c, g, t, d]
    _, for_coordinates = _scales(distance_scale, generated.shape[-1])
    generated = generated.astype(total.dtype)
    moved = generated - jax.lax.stop_gradient(generated)
    moved = moved / jax.lax.stop_gradient(for_coordinates)
    return jnp.mean(jnp.square(moved - jax.lax.stop_gradient(total)))


def drifting_loss(
    generated: jax.Array,
    positive: jax.Array,
    unconditional: jax.Array | None = None,
    *,
    generated_weight: jax.Array | None = None,
    positive_weight: jax.Array | None = None,
    unconditional_weight: jax.Array | None = None,
    options: DriftOptions = DriftOptions(),  # noqa: B008 (frozen)
) -> tuple[jax.Array, DriftingStatistics]:
    """Drifting loss of one feature (A.5, A.6).

    Generated samples always repel each other, self excluded. The value is the mean square of a sum
    of unit-RMS drifts: between 0 and n_τ², and nearly constant in training. Watch
    `drift_mean_square` instead.

    Args:
      generated: [c, g, t, d] features of generated samples; gradients reach these alone.
      positive: [c, p, t, d] features of real samples of the row's class, which attract.
      unconditional: [c, u, t, d] features of real samples of any class, which repel (guidance), or
        None.
      generated_weight, positive_weight, unconditional_weight: [c, n] weights of the targets, 1 if
        None. They multiply the affinities after both softmaxes and weigh the mean distance.
      options: temperatures and the paper's ablations of the field.

    Returns:
      The loss [] and its `DriftingStatistics`, in float32, or float64 if an input is.

    Raises:
      ValueError: shapes that do not fit each other, an empty set, or an unknown field.
    """
    sets = make_sets(
        generated,
        positive,
        unconditional,
        generated_weight=generated_weight,
        positive_weight=positive_weight,
        unconditional_weight=unconditional_weight,
    )
    distance = distances(sets)
    sums = distance_sums(distance, sets)
    drifts = raw_drifts(sets, distance, sums.distance_scale, options)
    # As a float: beyond 2³¹ at the paper's sizes.
    drift_mean_square = drift_sums(drifts) / float(generated.size)
    loss = drifted_loss(generated, drifts, sums.distance_scale, drift_mean_square)
    return loss, sums.statistics(drift_mean_square)
