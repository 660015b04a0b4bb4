"""The drifting loss over many features (14), of a whole batch or of one that comes in pieces.

A piece is some of the class rows with all their samples. What the rows share, the distance scale S
and the norms of the drift, is over the whole batch, so pieces take three passes: `distance_sums`,
added up, give S; `drift_sums`, added up, the norms; `shared_loss` of every piece, averaged, is then
the loss of the whole, and so is its gradient.
"""

import functools
from collections.abc import Mapping, Sequence

import flax.struct
import jax
import jax.numpy as jnp

from drifting_jax.method import losses
from drifting_jax.method.fields import FieldOptions
from drifting_jax.method.losses import DistanceSums, DriftingStatistics, drifting_loss

_STACKED_ELEMENTS = 2**15  # of a feature's generated samples, up to which equal shapes are stacked

Features = Mapping[str, jax.Array]


@flax.struct.dataclass
class FeatureSets:
    """All features of the samples of some class rows: {name: [c, n, t, d]}.

    Attributes:
      generated: gradients reach these alone.
      positive: of real samples of the row's class.
      negative: of real samples of any class, or None.
      negative_weight: [c, u], or None.
    """

    generated: Features
    positive: Features
    negative: Features | None
    negative_weight: jax.Array | None


def feature_drifting_loss(
    generated: Mapping[str, jax.Array],
    positive: Mapping[str, jax.Array],
    negative: Mapping[str, jax.Array] | None = None,
    *,
    generated_weight: jax.Array | None = None,
    positive_weight: jax.Array | None = None,
    negative_weight: jax.Array | None = None,
    temperatures: Sequence[float] = (0.02, 0.05, 0.2),
    affinity_floor: float = 1e-6,
    options: FieldOptions = FieldOptions(),  # noqa: B008 (frozen)
) -> tuple[jax.Array, dict[str, DriftingStatistics]]:
    """Sum of the drifting losses of many features (14).

    A feature that hardly varies over the samples (`DriftingStatistics.is_degenerate`) has a drift
    of pure rounding noise, which its normalisation would blow up to one: it is left out.

    Args:
      generated, positive, negative: {name: [c, n, t, d]} with the same names; other arguments as in
        `drifting_loss`.

    Returns:
      The loss [] and {name: DriftingStatistics}.

    Raises:
      ValueError: if there is no feature, or the names differ.
    """
    _check_names(generated, positive, negative)
    one_feature = functools.partial(
        drifting_loss,
        generated_weight=generated_weight,
        positive_weight=positive_weight,
        negative_weight=negative_weight,
        temperatures=temperatures,
        affinity_floor=affinity_floor,
        options=options,
    )
    total, statistics = 0.0, {}
    for names in _groups(generated):
        values, found = jax.vmap(one_feature)(
            *(_stacked(features, names) for features in (generated, positive, negative))
        )
        total += jnp.sum(jnp.where(found.is_degenerate, 0.0, values))
        statistics |= _unstacked(found, names)
    return total, statistics


def distance_sums(sets: FeatureSets) -> dict[str, DistanceSums]:
    """First pass over a piece: the sums that give each feature's S."""
    return _of_each(sets, lambda one, _: losses.distance_sums(losses.distances(one), one), {})


def drift_sums(
    sets: FeatureSets,
    distance_scales: Mapping[str, jax.Array],
    *,
    temperatures: Sequence[float],
    affinity_floor: float,
    options: FieldOptions,
) -> dict[str, jax.Array]:
    """Second pass over a piece: {name: [n_τ]} Σ drift², given S [] of each feature."""

    def one_feature(one: losses.Sets, scale: jax.Array) -> jax.Array:
        drifts = losses.raw_drifts(
            one,
            losses.distances(one),
            scale,
            temperatures=tuple(temperatures),
            affinity_floor=affinity_floor,
            options=options,
        )
        return losses.drift_sums(drifts)

    return _of_each(sets, one_feature, distance_scales)


def shared_loss(
    sets: FeatureSets,
    statistics: Mapping[str, DriftingStatistics],
    *,
    temperatures: Sequence[float],
    affinity_floor: float,
    options: FieldOptions,
) -> jax.Array:
    """Third pass over a piece: its [] loss, given the statistics of the whole batch."""

    def one_feature(generated: jax.Array, one: losses.Sets, of_all: DriftingStatistics):
        drifts = losses.raw_drifts(
            one,
            losses.distances(one),
            of_all.distance_scale,
            temperatures=tuple(temperatures),
            affinity_floor=affinity_floor,
            options=options,
        )
        loss = losses.drifted_loss(
            generated, drifts, of_all.distance_scale, of_all.drift_mean_square
        )
        return jnp.where(of_all.is_degenerate, 0.0, loss)

    total = 0.0
    for names in _groups(sets.generated):
        stacked = _stacked(sets.generated, names)
        of_all = _stacked(statistics, names)
        total += jnp.sum(jax.vmap(one_feature)(stacked, _sets_of(sets, names), of_all))
    return total


def _of_each(sets: FeatureSets, function, arguments: Mapping[str, jax.Array]) -> dict:
    """{name: function(the feature's `losses.Sets`, its argument if there are any)}."""
    _check_names(sets.generated, sets.positive, sets.negative)
    found = {}
    for names in _groups(sets.generated):
        argument = _stacked(arguments, names) if arguments else None
        found |= _unstacked(jax.vmap(function)(_sets_of(sets, names), argument), names)
    return found


def _sets_of(sets: FeatureSets, names: Sequence[str]) -> losses.Sets:
    make = functools.partial(losses.make_sets, negative_weight=sets.negative_weight)
    return jax.vmap(make)(
        *(_stacked(features, names) for features in (sets.generated, sets.positive, sets.negative))
    )


def _check_names(generated: Features, positive: Features, negative: Features | None) -> None:
    for other, names in (("positive", positive), ("negative", negative)):
        if names is not None and set(names) != set(generated):
            different = sorted(set(names) ^ set(generated))
            raise ValueError(
                f"{other} and generated must have the same features; {different} differ"
            )
    if not generated:
        raise ValueError("at least one feature is needed; found none")


def _stacked(by_name: Mapping | None, names: Sequence[str]):
    if by_name is None:
        return None
    return jax.tree.map(lambda *x: jnp.stack(x), *(by_name[name] for name in names))


def _unstacked(stacked, names: Sequence[str]) -> dict:
    return {name: jax.tree.map(lambda x, i=i: x[i], stacked) for i, name in enumerate(names)}


def _groups(features: Mapping[str, jax.Array]) -> list[list[str]]:
    """Names by shape and dtype, small features together, large ones each alone.

    Many small kernels cost more than their work: one for all of a shape takes 0.8 of the time and a
    third of the compilation (benchmarks/feature_loss.py). Large features would only be copied.
    """
    groups: dict[tuple, list[str]] = {}
    for name in sorted(features):
        x = features[name]
        alone = name if x.size > _STACKED_ELEMENTS else ""
        groups.setdefault((x.shape, x.dtype, alone), []).append(name)
    return list(groups.values())
