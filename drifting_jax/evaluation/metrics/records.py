"""Records of metrics, and how files name their fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class MetricRecord:
    """One metric of one set of samples.

    Attributes:
      metric: its key in `METRICS`.
      value: of the samples.
      alpha: guidance scale; None for samples without guidance.
      seed: of the noise; None where there is none.
      baseline: the same metric of real data in place of the samples, if known.
      deviation: standard deviation within the set, if known: KID's over subsets, the Inception
        Score's over splits.
    """

    metric: str
    value: float
    alpha: float | None = None
    seed: int | None = None
    baseline: float | None = None
    deviation: float | None = None


def to_json(record: MetricRecord) -> dict[str, Any]:
    """The fields of a line of figures.jsonl; "floor" and "deviation" only if they are known."""
    optional = {"floor": record.baseline, "deviation": record.deviation}
    return {
        "figure": record.metric,
        "value": record.value,
        **{name: value for name, value in optional.items() if value is not None},
        "alpha": record.alpha,
        "seed": record.seed,
    }


def from_json(line: Mapping[str, Any]) -> MetricRecord:
    """The record of a line of figures.jsonl."""
    return MetricRecord(
        line["figure"],
        line["value"],
        alpha=line.get("alpha"),
        seed=line.get("seed"),
        baseline=line.get("floor"),
        deviation=line.get("deviation"),
    )


def as_scalars(records: Sequence[MetricRecord]) -> dict[str, float]:
    """{metric: value, metric_floor: baseline} of the records of one set, as evaluation.json has it.

    A record without a baseline has no entry for it.
    """
    values = {record.metric: record.value for record in records}
    return values | {
        f"{record.metric}_floor": record.baseline
        for record in records
        if record.baseline is not None
    }
