"""The baselines of pairs, against NumPy in float64."""

import numpy as np
import pytest

from drifting_jax.pairs.baselines import measure_baselines
from drifting_jax.pairs.data import Pairs
from drifting_jax.steps.scaling import scaling_of


def expected(samples, targets):
    """Metrics of two samples [n, 2, d] of each target [n, d]."""
    error = np.sqrt(((samples - targets[:, None]) ** 2).mean(axis=-1))
    spread = np.sqrt(((samples[:, 0] - samples[:, 1]) ** 2).mean(axis=-1))
    return {
        "conditions": len(targets),
        "energy_score": error.mean() - spread.mean() / 2,
        "error": error.mean(),
        "nearest": error.min(axis=1).mean(),
        "spread": spread.mean(),
    }


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_baselines_are_metrics_of_the_training_images(dtype):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (30, 2, 2, 1), np.uint8)
    if dtype == np.float32:
        image = (image / 127.5 - 1).astype(np.float32)
    condition = rng.normal(size=(30, 3)).astype(np.float32) * np.float32([1, 100, 0.01])
    kept, some = Pairs(condition, image).split(8)
    found = measure_baselines(kept, some, scaling_of(kept.conditions))
    floats = image.reshape(30, -1).astype(float)
    floats = floats / 127.5 - 1 if dtype == np.uint8 else floats
    unit = condition.astype(float) / np.ptp(condition[:22], axis=0)
    apart = np.linalg.norm(unit[22:, None] - unit[None, :22], axis=-1)
    nearest = floats[np.argsort(apart, axis=1)[:, :2]]
    mean = np.broadcast_to(floats[:22].mean(axis=0), nearest.shape)
    assert set(found) == {"nearest_pairs", "mean_image"}
    assert found["nearest_pairs"] == pytest.approx(expected(nearest, floats[22:]), abs=1e-5)
    assert found["mean_image"] == pytest.approx(expected(mean, floats[22:]), abs=1e-5)


def test_a_single_pair_has_no_two_nearest_ones():
    kept, some = Pairs(np.zeros((3, 1), np.float32), np.zeros((3, 2, 2, 1), np.float32)).split(2)
    assert set(measure_baselines(kept, some, scaling_of(kept.conditions))) == {"mean_image"}
