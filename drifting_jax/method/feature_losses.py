"""The drifting loss over many features (14), of a whole batch or of one in microbatches.

A microbatch is some of the class rows with all their samples. What the rows share, the distance
scale S and the norms of the drift, is taken over the whole batch. So microbatches take three
passes: `distance_sums`, added up, give S; the mean of `drift_means` gives the norms; the mean of
`loss_and_cotangents` over the microbatches is then the loss of the whole batch, and so is its
gradient. `loss_by_previous` takes one pass, with S and the norms of the step before.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from drifting_jax.method import losses
from drifting_jax.method.fields.options import DriftOptions
from drifting_jax.method.statistics import DistanceSums, DriftingStatistics, DriftMeans

_JOINED_ELEMENTS = 2**21  # of generated samples, up to which features are joined in any case

Features = Mapping[str, jax.Array]


@flax.struct.dataclass
class FeatureSets:
    """All features of the samples of some class rows: {name: [c, n, t, d]}.

    Attributes:
      generated: of generated samples; gradients reach these alone.
      positive: of real samples of the row's class.
      unconditional: of real samples of any class, or None.
      unconditional_weight, generated_weight, positive_weight: [c, n], or None.
      fresh: of a second batch of generated samples, or None; see `DriftOptions.negatives`.
      key: of a field that draws random numbers, the same for all features and microbatches; or
        None.
      progress: [] the done share of the training, for annealed temperatures; or None.
      weights: ((name, weight), ...) of features whose loss does not count once.
    """

    generated: Features
    positive: Features
    unconditional: Features | None = None
    unconditional_weight: jax.Array | None = None
    generated_weight: jax.Array | None = None
    positive_weight: jax.Array | None = None
    fresh: Features | None = None
    key: jax.Array | None = None
    progress: jax.Array | None = None
    weights: tuple[tuple[str, float], ...] = flax.struct.field(pytree_node=False, default=())


def feature_drifting_loss(
    generated: Features,
    positive: Features,
    unconditional: Features | None = None,
    fresh: Features | None = None,
    *,
    generated_weight: jax.Array | None = None,
    positive_weight: jax.Array | None = None,
    unconditional_weight: jax.Array | None = None,
    options: DriftOptions = DriftOptions(),  # noqa: B008 (frozen)
    key: jax.Array | None = None,
    progress: jax.Array | None = None,
    weights: Mapping[str, float] | None = None,
) -> tuple[jax.Array, dict[str, DriftingStatistics]]:
    """Returns the weighted sum of the drifting losses of many features (14).

    A feature that hardly varies over the samples (`DriftingStatistics.is_degenerate`) has a drift
    of rounding noise, which the normalisation would scale up to one. It is left out of the sum.

    Args:
      generated, positive, unconditional, fresh: {name: [c, n, t, d]} with the same names; other
        arguments as in `drifting_loss`.
      weights: {name: weight of its loss}; 1 for names that are not there.

    Returns:
      The loss [] and {name: DriftingStatistics}.

    Raises:
      ValueError: there is no feature, or the names differ.
    """
    sets = FeatureSets(
        generated=generated,
        positive=positive,
        unconditional=unconditional,
        unconditional_weight=unconditional_weight,
        generated_weight=generated_weight,
        positive_weight=positive_weight,
        fresh=fresh,
        key=key,
        progress=progress,
        weights=tuple((weights or {}).items()),
    )
    loss, cotangents, statistics = loss_and_cotangents(sets, options)
    for name, cotangent in cotangents.items():
        loss = losses.with_gradient(loss, generated[name], cotangent)
    return loss, statistics


def loss_and_cotangents(
    sets: FeatureSets,
    options: DriftOptions,
    statistics: Mapping[str, DriftingStatistics] | None = None,
) -> tuple[jax.Array, dict[str, jax.Array], dict[str, DriftingStatistics]]:
    """Returns the loss of `feature_drifting_loss` and its gradient, which needs no differentiation.

    Args:
      sets: the features of a batch, or of a microbatch.
      options: the field and its temperatures.
      statistics: of the whole batch; None if `sets` is the whole batch.

    Returns:
      The loss [], {name: its gradient [c, g, t, d] with respect to the generated features, in their
      dtype}, and the statistics.
    """

    def drifted(one: losses.Sets, of_all: DriftingStatistics | None):
        loss, cotangent, of_all = losses.drifted(one, options, of_all, sets.progress)
        return loss, cotangent, of_all.is_degenerate, of_all

    return _over_features(drifted, sets, options, statistics)


def loss_by_previous(
    sets: FeatureSets, options: DriftOptions, previous: Mapping[str, DriftingStatistics]
) -> tuple[jax.Array, dict[str, jax.Array], dict[str, tuple[DistanceSums, DriftMeans]]]:
    """`loss_and_cotangents` of a microbatch, with the statistics of another step.

    Returns:
      The loss [], {name: its gradient [c, g, t, d]}, and {name: (sums of distances, means [k] of
      the drifts)}, which give the statistics of this step.
    """

    def drifted(one: losses.Sets, before: DriftingStatistics):
        loss, cotangent, measured = losses.drifted_by_previous(one, options, before, sets.progress)
        return loss, cotangent, before.is_degenerate, measured

    return _over_features(drifted, sets, options, previous)


def _over_features(
    drifted: Callable,
    sets: FeatureSets,
    options: DriftOptions,
    statistics: Mapping[str, DriftingStatistics] | None,
) -> tuple[jax.Array, dict[str, jax.Array], dict[str, Any]]:
    """Sums the weighted losses of features that are not degenerate.

    What else is found has an axis [f].
    """
    weights = dict(sets.weights)
    total = jnp.zeros((), jnp.float32)
    cotangents: dict[str, jax.Array] = {}
    found: dict[str, Any] = {}
    for names, one in _joined(sets, options):
        given = None if statistics is None else _stacked(statistics, names)
        loss, cotangent, is_degenerate, of_features = drifted(one, given)
        if weights.keys() & set(names):
            weight = jnp.asarray([weights.get(name, 1.0) for name in names], loss.dtype)
            loss *= weight
            cotangent *= one.for_locations(weight)[None, None, :, None]
        total += jnp.sum(jnp.where(is_degenerate, 0, loss))
        used = one.for_locations(~is_degenerate)
        cotangent = jnp.where(used[None, None, :, None], cotangent, 0)
        ends = np.cumsum(one.lengths)
        for name, n, end in zip(names, one.lengths, ends, strict=True):
            cotangents[name] = cotangent[:, :, end - n : end].astype(sets.generated[name].dtype)
        found |= _unstacked(of_features, names)
    return total, cotangents, found


def distance_sums(sets: FeatureSets, options: DriftOptions) -> dict[str, DistanceSums]:
    """First pass over a microbatch: the sums that give each feature's S."""
    found: dict[str, DistanceSums] = {}
    for names, one in _joined(sets, options):
        found |= _unstacked(losses.distance_sums(losses.distances(one), one), names)
    return found


def drift_means(
    sets: FeatureSets, distance_scales: Mapping[str, jax.Array], options: DriftOptions
) -> dict[str, DriftMeans]:
    """Second pass over a microbatch: {name: of [k]}, given S [] of each feature of the batch."""
    found: dict[str, DriftMeans] = {}
    for names, one in _joined(sets, options):
        scale = _stacked(distance_scales, names)
        _, means = losses.all_drifts(one, losses.distances(one), scale, options, sets.progress)
        found |= _unstacked(means, names)
    return found


def _joined(sets: FeatureSets, options: DriftOptions) -> Iterator[tuple[list[str], losses.Sets]]:
    """Yields features of equal channels side by side, and their names.

    Many small kernels cost more than their work, and each takes its time to compile
    (benchmarks/feature_loss.py).
    """
    _check_names(sets)
    for names in _groups(sets.generated):

        def joined(features: Features | None, names=names) -> jax.Array | None:
            return None if features is None else _side_by_side(features, names)

        yield (
            names,
            losses.make_sets(
                _side_by_side(sets.generated, names),
                _side_by_side(sets.positive, names),
                joined(sets.unconditional),
                joined(sets.fresh),
                options=options,
                generated_weight=sets.generated_weight,
                positive_weight=sets.positive_weight,
                unconditional_weight=sets.unconditional_weight,
                lengths=[sets.generated[name].shape[2] for name in names],
                key=sets.key,
            ),
        )


def _groups(features: Features) -> list[list[str]]:
    """Groups names by channels; no large group takes more memory than the largest feature."""
    most = max(_JOINED_ELEMENTS, *(x.size for x in features.values()))
    groups: list[list[str]] = []
    by_channels = sorted(features, key=lambda name: (features[name].shape[-1], name))
    for _, names in itertools.groupby(by_channels, lambda name: features[name].shape[-1]):
        total = math.inf
        for name in names:
            total += features[name].size
            if total > most:
                groups.append([])
                total = features[name].size
            groups[-1].append(name)
    return groups


def _side_by_side(features: Features, names: Sequence[str]) -> jax.Array:
    found = [features[name] for name in names]
    dtype = jnp.result_type(*found)
    return jnp.concatenate([x.astype(dtype) for x in found], axis=2)


def _check_names(sets: FeatureSets) -> None:
    others = {"positive": sets.positive, "unconditional": sets.unconditional, "fresh": sets.fresh}
    for other, features in others.items():
        if features is not None and set(features) != set(sets.generated):
            different = sorted(set(features) ^ set(sets.generated))
            raise ValueError(
                f"{other} and generated must have the same features; {different} differ"
            )
    if not sets.generated:
        raise ValueError("at least one feature is needed; found none")
    if unknown := sorted(dict(sets.weights).keys() - set(sets.generated)):
        raise ValueError(
            f"a weight must be that of a feature, one of {sorted(sets.generated)}; found {unknown}"
        )


def _stacked(by_name: Mapping[str, Any], names: Sequence[str]):
    return jax.tree.map(lambda *x: jnp.stack(x), *(by_name[name] for name in names))


def _unstacked(stacked, names: Sequence[str]) -> dict:
    return {name: jax.tree.map(lambda x, i=i: x[i], stacked) for i, name in enumerate(names)}
