"""The drifting loss over many features (14), of a whole batch or of one in microbatches.

A microbatch is some of the class rows with all their samples. What the rows share, the distance
scale S and the norms of the drift, is taken over the whole batch. So microbatches take three
passes: `distance_sums`, added up, give S; `drift_sums`, added up, give the norms; the mean of
`shared_loss` over the microbatches is then the loss of the whole batch, and so is its gradient.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from drifting_jax.method import losses
from drifting_jax.method.fields.options import DriftOptions
from drifting_jax.method.losses import DistanceSums, DriftingStatistics, drifting_loss

_STACKED_ELEMENTS = 2**15  # of a feature's generated samples, up to which equal shapes are stacked

Features = Mapping[str, jax.Array]


@flax.struct.dataclass
class FeatureSets:
    """All features of the samples of some class rows: {name: [c, n, t, d]}.

    Attributes:
      generated: of generated samples; gradients reach these alone.
      positive: of real samples of the row's class.
      unconditional: of real samples of any class, or None.
      unconditional_weight: [c, u], or None.
    """

    generated: Features
    positive: Features
    unconditional: Features | None
    unconditional_weight: jax.Array | None


def feature_drifting_loss(
    generated: Features,
    positive: Features,
    unconditional: Features | None = None,
    *,
    generated_weight: jax.Array | None = None,
    positive_weight: jax.Array | None = None,
    unconditional_weight: jax.Array | None = None,
    options: DriftOptions = DriftOptions(),  # noqa: B008 (frozen)
) -> tuple[jax.Array, dict[str, DriftingStatistics]]:
    """Returns the sum of the drifting losses of many features (14).

    A feature that hardly varies over the samples (`DriftingStatistics.is_degenerate`) has a drift
    of rounding noise, which the normalisation would scale up to one. It is left out of the sum.

    Args:
      generated, positive, unconditional: {name: [c, n, t, d]} with the same names; other arguments
        as in `drifting_loss`.

    Returns:
      The loss [] and {name: DriftingStatistics}.

    Raises:
      ValueError: there is no feature, or the names differ.
    """
    _check_names(generated, positive, unconditional)
    one_feature = functools.partial(
        drifting_loss,
        generated_weight=generated_weight,
        positive_weight=positive_weight,
        unconditional_weight=unconditional_weight,
        options=options,
    )
    total = jnp.zeros((), jnp.float32)
    statistics: dict[str, DriftingStatistics] = {}
    for names in _groups(generated):
        loss, found = jax.vmap(one_feature)(
            *(_stacked(features, names) for features in (generated, positive, unconditional))
        )
        total += jnp.sum(jnp.where(found.is_degenerate, 0.0, loss))
        statistics |= _unstacked(found, names)
    return total, statistics


def distance_sums(sets: FeatureSets) -> dict[str, DistanceSums]:
    """First pass over a microbatch: the sums that give each feature's S."""
    return _of_each(sets, lambda one, _: losses.distance_sums(losses.distances(one), one), {})


def drift_sums(
    sets: FeatureSets, distance_scales: Mapping[str, jax.Array], options: DriftOptions
) -> dict[str, jax.Array]:
    """Second pass over a microbatch: {name: [n_τ]} Σ drift², given S [] of each feature."""

    def one_feature(one: losses.Sets, scale: jax.Array) -> jax.Array:
        return losses.drift_sums(losses.raw_drifts(one, losses.distances(one), scale, options))

    return _of_each(sets, one_feature, distance_scales)


def shared_loss(
    sets: FeatureSets, statistics: Mapping[str, DriftingStatistics], options: DriftOptions
) -> jax.Array:
    """Third pass over a microbatch: its [] loss, given the statistics of the whole batch."""

    def one_feature(
        generated: jax.Array, one: losses.Sets, of_all: DriftingStatistics
    ) -> jax.Array:
        scale = of_all.distance_scale
        drifts = losses.raw_drifts(one, losses.distances(one), scale, options)
        loss = losses.drifted_loss(generated, drifts, scale, of_all.drift_mean_square)
        return jnp.where(of_all.is_degenerate, 0.0, loss)

    total = jnp.zeros((), jnp.float32)
    for names in _groups(sets.generated):
        stacked = _stacked(sets.generated, names)
        of_all = _stacked(statistics, names)
        total += jnp.sum(jax.vmap(one_feature)(stacked, _sets_of(sets, names), of_all))
    return total


def _of_each(sets: FeatureSets, function, arguments: Mapping[str, jax.Array]) -> dict[str, Any]:
    """{name: function(the feature's `losses.Sets`, its argument if there are any)}."""
    _check_names(sets.generated, sets.positive, sets.unconditional)
    found: dict[str, Any] = {}
    for names in _groups(sets.generated):
        argument = _stacked(arguments, names) if arguments else None
        found |= _unstacked(jax.vmap(function)(_sets_of(sets, names), argument), names)
    return found


def _sets_of(sets: FeatureSets, names: Sequence[str]) -> losses.Sets:
    make = functools.partial(losses.make_sets, unconditional_weight=sets.unconditional_weight)
    groups = (sets.generated, sets.positive, sets.unconditional)
    return jax.vmap(make)(*(_stacked(features, names) for features in groups))


def _check_names(generated: Features, positive: Features, unconditional: Features | None) -> None:
    for other, names in (("positive", positive), ("unconditional", unconditional)):
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
    """Groups names by shape and dtype: small features together, each large one alone.

    Many small kernels cost more than their work. One kernel for all features of a shape takes 0.8
    of the time and a third of the compilation (benchmarks/feature_loss.py). Large features would
    only be copied.
    """
    groups: dict[tuple, list[str]] = {}
    for name in sorted(features):
        x = features[name]
        alone = name if x.size > _STACKED_ELEMENTS else ""
        groups.setdefault((x.shape, x.dtype, alone), []).append(name)
    return list(groups.values())
