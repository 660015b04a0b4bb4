"""The drifting loss: a frozen, drifted target and a mean square, (6), (18)-(26), (36).

Shapes are those of `target_sets`. Every row and location has its own field. The distance scale S
and the norm of the drift belong to a feature, so they are computed here, between the passes, and
never inside the `vmap`. A batch in microbatches (over class rows) adds up `distance_sums`, and then
averages `DriftMeans` and `loss_and_cotangent` over the microbatches (`feature_losses`).

The loss is not differentiated: its gradient with respect to a generated feature, here called the
cotangent, is known (36).
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from drifting_jax.method.fields.lookahead import lookahead
from drifting_jax.method.fields.options import DriftOptions
from drifting_jax.method.fields.sets import ScaledSets
from drifting_jax.method.fields.table import field_named, temperatures_of
from drifting_jax.method.reach import reach
from drifting_jax.method.statistics import (
    SCALE_MINIMUM,
    DistanceSums,
    DriftingStatistics,
    DriftMeans,
)
from drifting_jax.method.target_sets import Sets, distance_sums, distances, make_sets

DRIFT_MEAN_SQUARE_MINIMUM = 1e-8


def _scales(sets: Sets, distance_scale: jax.Array) -> tuple[jax.Array, jax.Array]:
    """[t] S for distances and S/√d for coordinates, both clipped, of S [f]."""
    scale = sets.for_locations(distance_scale)
    return (
        jnp.maximum(scale, SCALE_MINIMUM),
        jnp.maximum(scale / sets.targets.shape[-1] ** 0.5, SCALE_MINIMUM),
    )


def of_each_set(
    function: Callable[[ScaledSets, jax.Array], jax.Array],
    sets: Sets,
    distance: jax.Array,
    distance_scale: jax.Array,
    temperatures: jax.Array,
) -> jax.Array:
    """Returns [c, t, n_τ, ...] of a function of one row and location and one temperature.

    Args:
      function: (`ScaledSets` of one row and location, τ []) -> an array.
      sets: samples and targets.
      distance: [c, t, g, n] of `distances`.
      distance_scale: [f] S.
      temperatures: [n_τ].
    """

    def one_set(
        samples: jax.Array,
        targets: jax.Array,
        distance: jax.Array,
        weights: jax.Array,
        for_distance: jax.Array,
        for_coordinates: jax.Array,
    ) -> jax.Array:
        scaled = ScaledSets(
            samples=samples / for_coordinates,
            targets=targets / for_coordinates,
            distance=distance / for_distance,
            weights=weights,
            num_generated=sets.num_generated,
            num_negative=sets.num_negative,
            negatives=sets.negatives,
            key=sets.key,
        )
        return jax.vmap(lambda temperature: function(scaled, temperature))(temperatures)

    over_locations = jax.vmap(one_set, in_axes=(0, 0, 0, None, 0, 0))
    over_rows = jax.vmap(over_locations, in_axes=(0, 0, 0, 0, None, None))
    scales = _scales(sets, distance_scale)
    return over_rows(sets.generated, sets.targets, distance, sets.weights, *scales)


def pair_weights(
    sets: Sets,
    distance: jax.Array,
    distance_scale: jax.Array,
    options: DriftOptions,
    progress: jax.Array | None = None,
    temperatures: jax.Array | None = None,
) -> jax.Array:
    """Returns [c, t, n_τ, g, n] what each target weighs in the drift of each generated sample.

    Args:
      sets: samples and targets.
      distance: [c, t, g, n] of `distances`.
      distance_scale: [f] S, over the whole batch.
      options: the field and its temperatures.
      progress: [] the done share of the training, for annealed temperatures.
      temperatures: [n_τ] in place of those of the options.
    """
    function = field_named(options.field).function
    return of_each_set(
        lambda scaled, temperature: function(scaled, temperature, options),
        sets,
        distance,
        distance_scale,
        temperatures_at(options, progress, distance.dtype, temperatures),
    )


def temperatures_at(
    options: DriftOptions,
    progress: jax.Array | None,
    dtype: jnp.dtype,
    given: jax.Array | None = None,
) -> jax.Array:
    """Returns [n_τ]: annealed ones fall geometrically from 1, over the first half (2603.09936).

    Temperatures that are `given`, such as learned ones, take the place of those of the options.

    Raises:
      ValueError: they are annealed and the progress is not known.
    """
    if given is not None:
        return given.astype(dtype)
    temperatures = jnp.asarray(temperatures_of(options), dtype)
    if not options.annealed:
        return temperatures
    if progress is None:
        raise ValueError("annealed temperatures need the progress of the training")
    return temperatures ** jnp.minimum(2 * progress, 1).astype(dtype)


def all_drifts(
    sets: Sets,
    distance: jax.Array,
    distance_scale: jax.Array,
    options: DriftOptions,
    progress: jax.Array | None = None,
    temperatures: jax.Array | None = None,
) -> tuple[jax.Array, DriftMeans]:
    """Returns [c, t, k, g, d] the drifts that are normalised one by one, over S/√d (A.6).

    There is one for each temperature, and with `options.lookahead` as many more for each. Beside
    them stand their means [f, k].
    """
    field = field_named(options.field)
    if gives_pair_weights(options):
        weights = pair_weights(sets, distance, distance_scale, options, progress, temperatures)
        found = drifts(sets, weights, distance_scale)
        measured = reach(sets, weights, options) if options.measure_reach else ()
        return found, DriftMeans(drift_mean_square(sets, found), *measured)

    def moved(scaled: ScaledSets, temperature: jax.Array) -> jax.Array:
        if field.gives_weights:
            return lookahead(field.function, scaled, temperature, options)
        return field.function(scaled, temperature, options)[None]

    found = of_each_set(
        moved,
        sets,
        distance,
        distance_scale,
        temperatures_at(options, progress, distance.dtype, temperatures),
    )
    found = found.reshape(*found.shape[:2], -1, *found.shape[4:])
    return found, DriftMeans(drift_mean_square(sets, found))


def gives_pair_weights(options: DriftOptions) -> bool:
    """Whether a sample drifts by weights of its targets, so that weights may be added up."""
    return field_named(options.field).gives_weights and not options.lookahead


def drifts(sets: Sets, weights: jax.Array, distance_scale: jax.Array) -> jax.Array:
    """Returns [c, t, k, g, d] drifts Σ w·(y - x) of weights [c, t, k, g, n], over S/√d (A.6)."""
    _, for_coordinates = _scales(sets, distance_scale)
    moved = jnp.einsum(
        "ctkgn,ctnd->ctkgd", weights, sets.targets, precision=jax.lax.Precision.HIGHEST
    )
    moved -= jnp.sum(weights, axis=-1, keepdims=True) * sets.generated[:, :, None]
    return moved / for_coordinates[None, :, None, None, None]


def drift_mean_square(sets: Sets, drifts: jax.Array) -> jax.Array:
    """Returns [f, k] the mean square (23) of drifts [c, t, k, g, d]."""
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
    sets: Sets,
    options: DriftOptions,
    statistics: DriftingStatistics | None = None,
    progress: jax.Array | None = None,
    temperatures: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, DriftingStatistics]:
    """Drifts the generated samples of a batch, or of a microbatch.

    Args:
      sets: samples and targets.
      options: the field and its temperatures.
      statistics: of the whole batch; None if `sets` is the whole batch.
      progress: [] the done share of the training, for annealed temperatures.
      temperatures: [n_τ] in place of those of the options; only for a whole batch.

    Returns:
      The loss [f], its gradient [c, g, t, d] with respect to the generated samples, and the
      statistics [f].
    """
    distance = distances(sets)
    if statistics is None:
        sums = distance_sums(distance, sets)
        scale = sums.distance_scale
        moved, means = all_drifts(sets, distance, scale, options, progress, temperatures)
        statistics = sums.statistics(means)
        total = _normalised_sum(sets, moved, statistics)
    elif not gives_pair_weights(options):
        moved, _ = all_drifts(sets, distance, statistics.distance_scale, options, progress)
        total = _normalised_sum(sets, moved, statistics)
    else:
        # The norms are known: the weights of all temperatures add up before their product.
        weights = pair_weights(sets, distance, statistics.distance_scale, options, progress)
        weights = jnp.sum(weights / _norms(sets, statistics), axis=2, keepdims=True)
        total = drifts(sets, weights, statistics.distance_scale)[:, :, 0]
    loss, cotangent = loss_and_cotangent(sets, total, statistics.distance_scale)
    return loss, cotangent, statistics


def drifted_by_previous(
    sets: Sets,
    options: DriftOptions,
    previous: DriftingStatistics,
    progress: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, tuple[DistanceSums, DriftMeans]]:
    """`drifted` of a microbatch in a single pass over the batch, with S and norms of another step.

    Returns:
      The loss [f], its gradient [c, g, t, d], and what gives the statistics of this step: the sums
      of its distances, and the means [f, n_τ] of the drifts at the S of the other step.
    """
    distance = distances(sets)
    moved, means = all_drifts(sets, distance, previous.distance_scale, options, progress)
    total = _normalised_sum(sets, moved, previous)
    loss, cotangent = loss_and_cotangent(sets, total, previous.distance_scale)
    return loss, cotangent, (distance_sums(distance, sets), means)


def _normalised_sum(sets: Sets, moved: jax.Array, statistics: DriftingStatistics) -> jax.Array:
    """[c, t, g, d] ΣV of drifts [c, t, k, g, d], each over its norm."""
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
    fresh: jax.Array | None = None,
    *,
    generated_weight: jax.Array | None = None,
    positive_weight: jax.Array | None = None,
    unconditional_weight: jax.Array | None = None,
    options: DriftOptions = DriftOptions(),  # noqa: B008 (frozen)
    key: jax.Array | None = None,
    progress: jax.Array | None = None,
) -> tuple[jax.Array, DriftingStatistics]:
    """Drifting loss of one feature (A.5, A.6).

    With the paper's field generated samples repel each other, self excluded. The value is the mean
    square of a sum of unit-RMS drifts: between 0 and n_τ², and nearly constant in training. Watch
    `drift_mean_square` instead.

    Args:
      generated: [c, g, t, d] features of generated samples; gradients reach these alone.
      positive: [c, p, t, d] features of real samples of the row's class, which attract.
      unconditional: [c, u, t, d] features of real samples of any class, which repel (guidance), or
        None.
      fresh: [c, m, t, d] features of a second batch of generated samples, which repel in place of
        the first, for `options.negatives` "fresh".
      generated_weight, positive_weight, unconditional_weight: [c, n] weights of the targets, 1 if
        None. They weigh the mean distance. With the paper's field they multiply the affinities
        after both softmaxes; with others they are the masses of the targets, and the sum of the
        unconditional ones is α - 1 times the number of generated samples that repel another.
      options: the field and its temperatures.
      key: of a field that draws random numbers ("sliced").
      progress: [] the done share of the training, for annealed temperatures.

    Returns:
      The loss [] and its `DriftingStatistics`, in float32, or float64 if an input is.

    Raises:
      ValueError: shapes that do not fit each other, an empty set, or an unknown field.
    """
    sets = make_sets(
        generated,
        positive,
        unconditional,
        fresh,
        options=options,
        generated_weight=generated_weight,
        positive_weight=positive_weight,
        unconditional_weight=unconditional_weight,
        key=key,
    )
    loss, cotangent, statistics = drifted(sets, options, progress=progress)
    return with_gradient(loss[0], generated, cotangent), jax.tree.map(lambda x: x[0], statistics)
