"""Figures of several sets of samples, brought together: over seeds, for each α."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from drifting_jax.evaluation.metrics.catalogue import FigureInfo

# One figure of one set: "figure" (its key), "alpha" (None: not guided), "seed" (or None), "value",
# and optionally "floor" (the same figure of real images) and "deviation" (of the figure within the
# set: KID's over subsets, IS's over splits).
Record = Mapping[str, Any]


class Summary(NamedTuple):
    """A figure over seeds: their mean, and their sample standard deviation where several.

    `within` is the deviation that a single record brings along, over subsets or splits of its set.
    """

    mean: float
    deviation: float | None
    seeds: int
    within: float | None


@dataclasses.dataclass(frozen=True)
class Row:
    """The figures of one α, by key."""

    alpha: float | None
    figures: Mapping[str, Summary]


def summarize(records: Sequence[Record]) -> list[Row]:
    """Means and sample standard deviations (n - 1) over seeds, a row per α, None first.

    A value that is not finite makes its mean NaN or infinite, and its deviation NaN.

    Raises:
      ValueError: two records of the same figure, α and seed.
    """
    grouped: dict[float | None, dict[str, dict[Any, Record]]] = {}
    for record in records:
        figure, alpha, seed = record["figure"], record.get("alpha"), record.get("seed")
        by_seed = grouped.setdefault(alpha, {}).setdefault(figure, {})
        if seed in by_seed:
            raise ValueError(f"two records of {figure} at alpha {alpha} and seed {seed}")
        by_seed[seed] = record
    alphas = sorted(grouped, key=lambda alpha: (alpha is not None, alpha or 0.0))
    return [
        Row(alpha, {name: _summary(list(found.values())) for name, found in grouped[alpha].items()})
        for alpha in alphas
    ]


def floors(records: Sequence[Record]) -> dict[str, float]:
    """The same figures of real images, where records have them; the mean where they differ."""
    found: dict[str, list[float]] = {}
    for record in records:
        if record.get("floor") is not None:
            found.setdefault(record["figure"], []).append(float(record["floor"]))
    return {name: _mean(values) for name, values in found.items()}


def best_rows(rows: Sequence[Row], figure: str, better: str) -> list[Row]:
    """The rows whose mean is the best one that is finite: several in a tie, none if none is."""
    shortfall = {"lower": lambda v: v, "higher": lambda v: -v, "near 1": lambda v: abs(v - 1)}
    having = [
        (shortfall[better](row.figures[figure].mean), row)
        for row in rows
        if figure in row.figures and math.isfinite(row.figures[figure].mean)
    ]
    least = min((short for short, _ in having), default=None)
    return [row for short, row in having if short == least]


def in_order(records: Sequence[Record], info: Mapping[str, FigureInfo]) -> list[str]:
    """Keys of the figures that records have, in the order of `info`.

    Raises:
      ValueError: a record's figure is not in `info`.
    """
    found = {record["figure"] for record in records}
    if unknown := sorted(found - info.keys()):
        raise ValueError(f"no FigureInfo for {', '.join(unknown)}; there are {', '.join(info)}")
    return [name for name in info if name in found]


def _summary(records: Sequence[Record]) -> Summary:
    values = [float(record["value"]) for record in records]
    if len(values) > 1:
        return Summary(_mean(values), _deviation(values), len(values), None)
    within = records[0].get("deviation")
    return Summary(values[0], None, 1, None if within is None else float(within))


def _mean(values: Sequence[float]) -> float:
    with np.errstate(invalid="ignore"):
        return float(np.mean(values, dtype=np.float64))


def _deviation(values: Sequence[float]) -> float:
    with np.errstate(invalid="ignore"):
        return float(np.std(values, ddof=1, dtype=np.float64))
