"""The drifting loss: a frozen, drifted target and a mean square, (6), (18)-(26), (36).

A feature is [c, n, t, d]: class rows, samples, locations, channels. Features of equal channels may
lie side by side: t then counts the locations of all, and statistics are [f], one of each feature.
Every row and location has its own field. The distance scale S and the norm of the drift belong to
a feature, so they are computed here, between the passes, and never inside the `vmap`. A batch in
microbatches (over class rows) adds up `distance_sums`, and then averages `drift_mean_square` and
`loss_and_cotangent` over the microbatches (`feature_losses`).

The loss is not differentiated: its gradient with respect to a generated feature, here called the
cotangent, is known (36).
"""

import functools
from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from drifting_jax.method.fields.options import DriftOptions
from drifting_jax.method.fields.sets import ScaledSets, own_pairs, pairwise_distance
from drifting_jax.method.fields.table import field_named
from drifting_jax.method.statistics import SCALE_MINIMUM, DistanceSums, DriftingStatistics

SQUARED_DISTANCE_MINIMUM = 1e-8
DRIFT_MEAN_SQUARE_MINIMUM = 1e-8


@flax.struct.dataclass
class Sets:
    """Samples and targets of features of d channels, in the order of the released code.

    Attributes:
      targets: [c, t, n, d], n = g + u + p, generated first; centred per row and location.
      weights: [c, n].
      num_generated: g.
      num_negative: g + u, the targets that repel.
      lengths: locations of each feature, which add up to t.
    """

    targets: jax.Array
    weights: jax.Array
    num_generated: int = flax.struct.field(pytree_node=False)
    num_negative: int = flax.struct.field(pytree_node=False)
    lengths: tuple[int, ...] = flax.struct.field(pytree_node=False)

    @property
    def generated(self) -> jax.Array:
        """[c, t, g, d]."""
        return self.targets[:, :, : self.num_generated]

    def for_locations(self, of_features: jax.Array) -> jax.Array:
        """[f, ...] -> [t, ...]: at each location the entry of its feature."""
        return of_features[np.repeat(np.arange(len(self.lengths)), self.lengths)]

    def sums(self, of_locations: jax.Array) -> jax.Array:
        """[t, ...] -> [f, ...]: the sum over the locations of each feature."""
        features = np.arange(len(self.lengths))
        is_of = features[:, None] == np.repeat(features, self.lengths)  # [f, t]
        # Not a product: what is not finite stays with its feature.
        is_of = np.expand_dims(is_of, tuple(range(2, of_locations.ndim + 1)))
        return jnp.sum(jnp.where(is_of, of_locations[None], 0), axis=1)


def make_sets(
    generated: jax.Array,
    positive: jax.Array,
    unconditional: jax.Array | None = None,
    *,
    generated_weight: jax.Array | None = None,
    positive_weight: jax.Array | None = None,
    unconditional_weight: jax.Array | None = None,
    lengths: Sequence[int] | None = None,
) -> Sets:
    """Checks shapes and gathers all targets, under stop-gradient.

    Shapes are as in `drifting_loss`. `lengths` are the locations of each feature; None for one.
    """
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
    sets = [jax.lax.stop_gradient(a).astype(dtype) for a in groups.values()]
    total = functools.reduce(jnp.add, [jnp.sum(a, axis=1, keepdims=True) for a in sets])
    centre = total / sum(a.shape[1] for a in sets)
    joined = jnp.concatenate([(a - centre).swapaxes(1, 2) for a in sets], axis=2)
    # Stored before it is used: fused into reductions, a concatenation makes XLA for GPUs fail in
    # its Triton rewriter (jax 0.10).
    targets = jax.lax.optimization_barrier(joined)
    return Sets(
        targets=targets,
        weights=jax.lax.stop_gradient(jnp.concatenate(weights, axis=1)),
        num_generated=generated.shape[1],
        num_negative=generated.shape[1] + unconditional.shape[1],
        lengths=tuple(lengths or (generated.shape[2],)),
    )


def distances(sets: Sets) -> jax.Array:
    """Returns [c, t, g, n] distances of generated samples to all targets; own pairs are 1e-4."""

    def one_set(generated: jax.Array, targets: jax.Array) -> jax.Array:
        own = own_pairs(generated.shape[0], targets.shape[0])
        distance = pairwise_distance(
            generated,
            targets,
            squared_minimum=SQUARED_DISTANCE_MINIMUM,
            ignored=own,
            are_centred=True,
        )
        return jnp.where(own, jnp.asarray(SQUARED_DISTANCE_MINIMUM**0.5, distance.dtype), distance)

    return jax.vmap(jax.vmap(one_set))(sets.generated, sets.targets)


def distance_sums(distance: jax.Array, sets: Sets) -> DistanceSums:
    """Sums `distances` [c, t, g, n] for the distance scale S (21) and the diversity."""
    c, _, g, n = distance.shape
    positives = n - sets.num_negative
    lengths = jnp.asarray(sets.lengths, distance.dtype)
    target = np.arange(n)[None, None, None]
    # Factors, where slices would be copied before they are summed.
    is_generated = (target < g).astype(distance.dtype)
    is_positive = (target >= sets.num_negative).astype(distance.dtype)
    over = (0, 2, 3)  # all axes but locations
    own = SQUARED_DISTANCE_MINIMUM**0.5 * c * g * lengths
    return DistanceSums(
        weighted=sets.sums(jnp.sum(distance * sets.weights[:, None, None], over)),
        weight=jnp.sum(sets.weights) * g * lengths,
        generated=sets.sums(jnp.sum(distance * is_generated, over)) - own,
        generated_pairs=c * g * max(g - 1, 1) * lengths,
        positive=sets.sums(jnp.sum(distance * is_positive, over)),
        positive_pairs=c * g * positives * lengths,
    )


def _scales(sets: Sets, distance_scale: jax.Array) -> tuple[jax.Array, jax.Array]:
    """[t] S for distances and S/√d for coordinates, both clipped, of S [f]."""
    scale = sets.for_locations(distance_scale)
    return (
        jnp.maximum(scale, SCALE_MINIMUM),
        jnp.maximum(scale / sets.targets.shape[-1] ** 0.5, SCALE_MINIMUM),
    )


def pair_weights(
    sets: Sets, distance: jax.Array, distance_scale: jax.Array, options: DriftOptions
) -> jax.Array:
    """Returns [c, t, n_τ, g, n] what each target weighs in the drift of each generated sample.

    Args:
      sets: samples and targets.
      distance: [c, t, g, n] of `distances`.
      distance_scale: [f] S, over the whole batch.
      options: the field and its temperatures.
    """
    field = field_named(options.field)
    temperatures = jnp.asarray(options.temperatures, distance.dtype)

    def one_set(
        targets: jax.Array,
        distance: jax.Array,
        weights: jax.Array,
        for_distance: jax.Array,
        for_coordinates: jax.Array,
    ) -> jax.Array:
        scaled = ScaledSets(
            targets=targets / for_coordinates,
            distance=distance / for_distance,
            weights=weights,
            num_generated=sets.num_generated,
            num_negative=sets.num_negative,
        )
        return jax.vmap(lambda temperature: field(scaled, temperature, options))(temperatures)

    over_locations = jax.vmap(one_set, in_axes=(0, 0, None, 0, 0))
    over_rows = jax.vmap(over_locations, in_axes=(0, 0, 0, None, None))
    return over_rows(sets.targets, distance, sets.weights, *_scales(sets, distance_scale))


def drifts(sets: Sets, weights: jax.Array, distance_scale: jax.Array) -> jax.Array:
    """Returns [c, t, k, g, d] drifts Σ w·(y - x) of weights [c, t, k, g, n], over S/√d (A.6)."""
    _, for_coordinates = _scales(sets, distance_scale)
    moved = jnp.einsum(
        "ctkgn,ctnd->ctkgd", weights, sets.targets, precision=jax.lax.Precision.HIGHEST
    )
    moved -= jnp.sum(weights, axis=-1, keepdims=True) * sets.generated[:, :, None]
    return moved / for_coordinates[None, :, None, None, None]


def drift_mean_square(sets: Sets, drifts: jax.Array) -> jax.Array:
    """Returns [f, n_τ] the mean square (23) of drifts [c, t, n_τ, g, d]."""
    sums = sets.sums(jnp.sum(jnp.square(drifts), axis=(0, 3, 4)))
    return sums / _entries(sets)[:, None]


def _entries(sets: Sets) -> jax.Array:
    """[f] entries of each feature's generated samples, as floats: beyond 2³¹ at full size."""
    c, _, g, d = sets.generated.shape
    return jnp.asarray([float(c * g * d * n) for n in sets.lengths], sets.targets.dtype)


def loss_and_cotangent(
    sets: Sets, total: jax.Array, distance_scale: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Mean square between samples and their frozen drifted selves (25), (26), and its gradient.

    Args:
      sets: samples and targets.
      total: [c, t, g, d] ΣV, the sum of the normalised drifts.
      distance_scale: [f] S, over the whole batch.

    Returns:
      [f] loss, and [c, g, t, d] its gradient with respect to the generated samples (36).
    """
    entries = _entries(sets)
    loss = sets.sums(jnp.sum(jnp.square(total), axis=(0, 2, 3))) / entries
    _, for_coordinates = _scales(sets, distance_scale)
    factor = -2 / (for_coordinates * sets.for_locations(entries))
    return loss, (total * factor[None, :, None, None]).swapaxes(1, 2)


def drifted(
    sets: Sets, options: DriftOptions, statistics: DriftingStatistics | None = None
) -> tuple[jax.Array, jax.Array, DriftingStatistics]:
    """Drifts the generated samples of a batch, or of a microbatch.

    Args:
      sets: samples and targets.
      options: the field and its temperatures.
      statistics: of the whole batch; None if `sets` is the whole batch.

    Returns:
      The loss [f], its gradient [c, g, t, d] with respect to the generated samples, and the
      statistics [f].
    """
    distance = distances(sets)
    if statistics is None:
        sums = distance_sums(distance, sets)
        weights = pair_weights(sets, distance, sums.distance_scale, options)
        moved = drifts(sets, weights, sums.distance_scale)
        statistics = sums.statistics(drift_mean_square(sets, moved))
        total = _normalised_sum(sets, moved, statistics)
    else:
        # The norms are known: the weights of all temperatures add up before their product.
        weights = pair_weights(sets, distance, statistics.distance_scale, options)
        weights = jnp.sum(weights / _norms(sets, statistics), axis=2, keepdims=True)
        total = drifts(sets, weights, statistics.distance_scale)[:, :, 0]
    loss, cotangent = loss_and_cotangent(sets, total, statistics.distance_scale)
    return loss, cotangent, statistics


def drifted_by_previous(
    sets: Sets, options: DriftOptions, previous: DriftingStatistics
) -> tuple[jax.Array, jax.Array, tuple[DistanceSums, jax.Array]]:
    """`drifted` of a microbatch in a single pass over the batch, with S and norms of another step.

    Returns:
      The loss [f], its gradient [c, g, t, d], and what gives the statistics of this step: the sums
      of its distances, and the mean squares [f, n_τ] of the drifts at the S of the other step.
    """
    distance = distances(sets)
    weights = pair_weights(sets, distance, previous.distance_scale, options)
    moved = drifts(sets, weights, previous.distance_scale)
    total = _normalised_sum(sets, moved, previous)
    loss, cotangent = loss_and_cotangent(sets, total, previous.distance_scale)
    return loss, cotangent, (distance_sums(distance, sets), drift_mean_square(sets, moved))


def _normalised_sum(sets: Sets, moved: jax.Array, statistics: DriftingStatistics) -> jax.Array:
    """[c, t, g, d] ΣV of drifts [c, t, n_τ, g, d], each over its norm."""
    norms = _norms(sets, statistics)
    normalised = [moved[:, :, i] / norms[:, :, i] for i in range(norms.shape[2])]
    return functools.reduce(jnp.add, normalised)


def _norms(sets: Sets, statistics: DriftingStatistics) -> jax.Array:
    """[1, t, n_τ, 1, 1] root mean square of the drifts (23)."""
    norms = jnp.sqrt(jnp.maximum(statistics.drift_mean_square, DRIFT_MEAN_SQUARE_MINIMUM))
    return sets.for_locations(norms)[None, ..., None, None]


def with_gradient(loss: jax.Array, x: jax.Array, cotangent: jax.Array) -> jax.Array:
    """Adds a gradient with respect to x to a loss; its value stays."""
    moved = x - jax.lax.stop_gradient(x)
    return loss + jnp.sum(moved * jax.lax.stop_gradient(cotangent))


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
    loss, cotangent, statistics = drifted(sets, options)
    return with_gradient(loss[0], generated, cotangent), jax.tree.map(lambda x: x[0], statistics)
