"""Metrics of a two-dimensional toy: the distance to its target, and the mass of each mode."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from drifting_jax.data.points import modes, sample_target
from drifting_jax.evaluation.metrics.points import (
    mode_shares,
    sliced_wasserstein,
    sliced_wasserstein_baseline,
)
from drifting_jax.evaluation.metrics.records import MetricRecord, as_scalars

_DRAWS = 5  # of samples, that each metric is the median over


def measure_toy(
    sample: Callable[[int, int], np.ndarray],
    *,
    target: str,
    num_samples: int,
    directions: int,
    seed: int,
) -> list[MetricRecord]:
    """Records of `sliced_wasserstein` and, for targets of modes, of `mode_shares`, one a mode.

    Args:
      sample: (seed, n) -> points [n,2] of the generator.
      target: see `data.points.TARGETS`.
      num_samples: points in a draw.
      directions: of the sliced Wasserstein distance.
      seed: of the points of the target.
    """
    rng = np.random.default_rng(seed + 1)
    centres = modes(target)
    distances, shares = [], []
    for draw in range(_DRAWS):
        points = sample(draw, num_samples)
        real = sample_target(target, rng, num_samples)
        distances.append(sliced_wasserstein(points, real, directions=directions))
        if centres is not None:
            shares.append(mode_shares(points, centres))
    baseline = sliced_wasserstein_baseline(
        lambda rng, n: sample_target(target, rng, n), num_samples=num_samples
    )
    distance = float(np.median(distances))
    records = [MetricRecord("sliced_wasserstein", distance, baseline=baseline)]
    if centres is not None:
        for share in np.median(shares, axis=0):
            records.append(MetricRecord("mode_shares", float(share), baseline=1 / len(centres)))
    return records


def toy_table(records: Sequence[MetricRecord], *, num_samples: int) -> str:
    """A short table in plain text of the records of `measure_toy`."""
    distance, *shares = records
    lines = [
        f"{num_samples} points, median of {_DRAWS} draws; 'real' is real against real",
        f"sliced Wasserstein  {distance.value:.4f}  real {distance.baseline:.4f}",
    ]
    if shares:
        values = " ".join(f"{share.value:.3f}" for share in shares)
        lines.append(f"mass per mode       {values}  real {shares[0].baseline:.3f}")
    return "\n".join(lines)


def toy_json(records: Sequence[MetricRecord], *, num_samples: int) -> dict[str, Any]:
    """The same records as evaluation.json has them: mode shares are a list without a baseline."""
    distance, *shares = records
    found = {"num_samples": num_samples, **as_scalars([distance])}
    return found | ({"mode_shares": [share.value for share in shares]} if shares else {})
