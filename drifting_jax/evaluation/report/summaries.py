"""Records of several sets of samples, summarized over seeds for each α."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from drifting_jax.evaluation.metrics.catalogue import METRICS
from drifting_jax.evaluation.metrics.records import MetricRecord


class Summary(NamedTuple):
    """A metric over seeds: the mean, and the sample standard deviation of several seeds.

    `within` is the deviation that a single record has within its set, over subsets or splits.
    """

    mean: float
    deviation: float | None
    seeds: int
    within: float | None


@dataclasses.dataclass(frozen=True)
class Row:
    """The metrics of one α, by key."""

    alpha: float | None
    metrics: Mapping[str, Summary]


def summarize(records: Sequence[MetricRecord]) -> list[Row]:
    """Means and sample standard deviations (n - 1) over seeds, a row for each α, None first.

    A value that is not finite makes its mean NaN or infinite, and its deviation NaN.

    Raises:
      ValueError: two records of the same metric, α and seed.
    """
    grouped: dict[float | None, dict[str, dict[int | None, MetricRecord]]] = {}
    for record in records:
        by_seed = grouped.setdefault(record.alpha, {}).setdefault(record.metric, {})
        if record.seed in by_seed:
            raise ValueError(
                f"two records of {record.metric} at alpha {record.alpha} and seed {record.seed}"
            )
        by_seed[record.seed] = record
    alphas = sorted(grouped, key=lambda alpha: (alpha is not None, alpha or 0.0))
    return [
        Row(alpha, {name: _summary(list(found.values())) for name, found in grouped[alpha].items()})
        for alpha in alphas
    ]


def baselines(records: Sequence[MetricRecord]) -> dict[str, float]:
    """The baseline of each metric that has one; the mean where records differ."""
    found: dict[str, list[float]] = {}
    for record in records:
        if record.baseline is not None:
            found.setdefault(record.metric, []).append(float(record.baseline))
    return {name: _mean(values) for name, values in found.items()}


def best_rows(rows: Sequence[Row], metric: str) -> list[Row]:
    """The rows that are best by a metric, the best mean first; none if no mean is finite.

    Rows that tie with the best follow in their order: those whose mean differs from it by no more
    than the sum of the two deviations over seeds. The deviation of a row with a single seed is
    unknown and taken to be the other row's; if both are unknown, only equal means tie.
    """
    finite = [row for row in rows if metric in row.metrics and _is_finite(row.metrics[metric])]
    if not finite or METRICS[metric].better not in _SHORTFALLS:
        return []
    best = min(finite, key=lambda row: _shortfall(metric, row))
    return [best, *(row for row in finite if row is not best and _ties(metric, best, row))]


def keys_in_order(records: Sequence[MetricRecord]) -> list[str]:
    """Keys of the metrics that records have, in the order of `METRICS`.

    Raises:
      ValueError: a record's metric is not in `METRICS`.
    """
    found = {record.metric for record in records}
    if unknown := sorted(found - METRICS.keys()):
        raise ValueError(
            f"no metric is called {', '.join(unknown)}; there are {', '.join(METRICS)}"
        )
    return [name for name in METRICS if name in found]


# By how much a value is from the best that a metric could be. Where real data are the best, no row
# is marked.
_SHORTFALLS = {"lower": lambda v: v, "higher": lambda v: -v, "near 1": lambda v: abs(v - 1)}


def _shortfall(metric: str, row: Row) -> float:
    return _SHORTFALLS[METRICS[metric].better](row.metrics[metric].mean)


def _ties(metric: str, best: Row, other: Row) -> bool:
    """Whether the deviations over seeds leave open which of two rows is better."""
    deviations = [row.metrics[metric].deviation for row in (best, other)]
    known = [deviation for deviation in deviations if deviation is not None]
    spread = 2 * sum(known) / len(known) if known else 0.0
    return _shortfall(metric, other) - _shortfall(metric, best) <= spread


def _is_finite(summary: Summary) -> bool:
    return math.isfinite(summary.mean)


def _summary(records: Sequence[MetricRecord]) -> Summary:
    values = [float(record.value) for record in records]
    if len(values) > 1:
        return Summary(_mean(values), _deviation(values), len(values), None)
    within = records[0].deviation
    return Summary(values[0], None, 1, None if within is None else float(within))


def _mean(values: Sequence[float]) -> float:
    with np.errstate(invalid="ignore"):
        return float(np.mean(values, dtype=np.float64))


def _deviation(values: Sequence[float]) -> float:
    with np.errstate(invalid="ignore"):
        return float(np.std(values, ddof=1, dtype=np.float64))
