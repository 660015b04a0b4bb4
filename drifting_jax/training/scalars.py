"""The scalars of a line of metrics.jsonl, from the metrics of a step."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from drifting_jax.method.statistics import DriftingStatistics
from drifting_jax.steps.generator_step import GeneratorMetrics


class PointMetrics(Protocol):
    """What steps on raw coordinates report, such as `steps.toy_step.ToyMetrics`."""

    @property
    def loss(self) -> Any: ...

    @property
    def gradient_norm(self) -> Any: ...

    @property
    def statistics(self) -> DriftingStatistics: ...


def of_generator(
    metrics: GeneratorMetrics, *, drifts: Sequence[str], learning_rate: float
) -> dict[str, float]:
    """Returns the scalars of a generator's step.

    For each feature: the raw drift mean square of each temperature, the distance scale S, and
    `diversity`, the mean distance between generated samples over that to positives. The diversity
    is near 1 when the samples vary as the data does, and falls to 0 when they collapse.
    `.../mean` averages over the features that are in the loss; `features_left_out` counts the
    others. With `drift.measure_reach` the samples of these features also have, for each
    temperature, a mean of `effective_positives` over the reached ones, and the share `unreached`.
    """
    scalars = {
        "loss": float(metrics.loss),
        "grad_norm": float(metrics.gradient_norm),
        "learning_rate": learning_rate,
        "cfg_scale": float(metrics.cfg_scale),
    }
    used = {n: s for n, s in metrics.statistics.items() if not bool(s.is_degenerate)}
    scalars["features_left_out"] = len(metrics.statistics) - len(used)
    diversity = {name: _diversity(s) for name, s in used.items()}
    if used:
        for i, drift in enumerate(drifts):
            squares = [float(s.drift_mean_square[i]) for s in used.values()]
            scalars[f"drift/mean/{drift}"] = float(np.mean(squares))
        scalars["diversity/mean"] = float(np.mean(list(diversity.values())))
        scalars |= _reach(list(used.values()), drifts)
    for name, s in metrics.statistics.items():
        for i, drift in enumerate(drifts):
            scalars[f"drift/{name}/{drift}"] = float(s.drift_mean_square[i])
        scalars[f"distance_scale/{name}"] = float(s.distance_scale)
    return scalars | {f"diversity/{name}": value for name, value in diversity.items()}


def of_encoder(metrics: Mapping[str, np.ndarray], *, learning_rate: float) -> dict[str, float]:
    """Returns the scalars of a masked autoencoder's step."""
    values = {name: float(value) for name, value in metrics.items() if name != "updates"}
    return {"learning_rate": learning_rate, **values}


def of_toy(
    metrics: PointMetrics, *, drifts: Sequence[str], learning_rate: float
) -> dict[str, float]:
    """Returns the scalars of a toy's step; its one feature is the points themselves."""
    s = metrics.statistics
    squares = dict(zip(drifts, s.drift_mean_square, strict=True))
    return {
        "loss": float(metrics.loss),
        "grad_norm": float(metrics.gradient_norm),
        "learning_rate": learning_rate,
        **{f"drift/mean/{drift}": float(value) for drift, value in squares.items()},
        "distance_scale": float(s.distance_scale),
        "diversity/mean": _diversity(s),
        **_reach([s], drifts),
    }


def _reach(statistics: Sequence[DriftingStatistics], drifts: Sequence[str]) -> dict[str, float]:
    """Of all features: the effective positives of a reached sample, and the share unreached."""
    measured = [(s.effective_positives, s.unreached) for s in statistics]
    if measured[0][0] is None:
        return {}
    numbers, unreached = np.mean(np.asarray(measured), axis=0)
    numbers = numbers / np.maximum(1 - unreached, np.finfo(np.float32).tiny)
    found = {f"effective_positives/{d}": float(x) for d, x in zip(drifts, numbers, strict=True)}
    return found | {f"unreached/{d}": float(x) for d, x in zip(drifts, unreached, strict=True)}


def _diversity(s: DriftingStatistics) -> float:
    return float(s.generated_distance / np.maximum(s.positive_distance, 1e-12))
