"""Made-up records of metrics."""

import numpy as np

from drifting_jax.evaluation.metrics.records import MetricRecord


def record(metric, alpha, value, *, seed=None, **more):
    return MetricRecord(metric, value, alpha=alpha, seed=seed, **more)


def several_seeds(alphas=(1.0, 1.5, 4.0)):
    """FID and Inception Score of three seeds, in no order."""
    rng = np.random.default_rng(0)
    records = [
        record(metric, alpha, float(rng.uniform(1, 5)), seed=seed)
        for metric in ("fid", "inception_score")
        for alpha in alphas
        for seed in (0, 1, 7)
    ]
    return [records[i] for i in rng.permutation(len(records))]
