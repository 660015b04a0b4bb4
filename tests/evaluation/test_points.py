from functools import partial

import numpy as np
import pytest
import scipy.stats

from drifting_jax.data.points import MODE_STD, modes, sample_target
from drifting_jax.evaluation.metrics.points import (
    mode_shares,
    sliced_wasserstein,
    sliced_wasserstein_baseline,
)

draw = partial(sample_target, "two_modes")


@pytest.mark.parametrize(("n", "m"), [(30, 30), (30, 12), (7, 50)])
def test_agrees_with_scipy_on_a_line(n, m):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(n, 1)), 2.0 * rng.normal(size=(m, 1)) + 1.0
    expected = scipy.stats.wasserstein_distance(a[:, 0], b[:, 0])
    np.testing.assert_allclose(sliced_wasserstein(a, b), expected, rtol=1e-12)


def test_a_shift_costs_its_mean_projection():
    points = sample_target("two_moons", np.random.default_rng(0), 200).astype(np.float64)
    # E|cos| over directions of the plane is 2/π.
    found = sliced_wasserstein(points, points + np.array([3.0, 0.0]), directions=20000)
    np.testing.assert_allclose(found, 6.0 / np.pi, rtol=0.02)
    assert sliced_wasserstein(points, points) == 0.0
    np.testing.assert_allclose(sliced_wasserstein(points, points[::-1]), 0.0, atol=1e-12)


def test_symmetric_and_repeatable():
    rng = np.random.default_rng(1)
    a, b = draw(rng, 60), draw(rng, 45)
    assert sliced_wasserstein(a, b) == sliced_wasserstein(a, b)
    np.testing.assert_allclose(sliced_wasserstein(a, b), sliced_wasserstein(b, a), rtol=1e-12)


def test_a_lost_mode_costs_far_more_than_the_baseline():
    baseline = sliced_wasserstein_baseline(draw, num_samples=500, pairs=16)
    points = draw(np.random.default_rng(5), 1000)
    half = points[points[:, 0] > 0]
    assert sliced_wasserstein(half, points) > 8 * baseline
    assert sliced_wasserstein_baseline(draw, num_samples=500, pairs=16) == baseline


def test_baseline_shrinks_with_the_number_of_points():
    few, many = (sliced_wasserstein_baseline(draw, num_samples=n, pairs=24) for n in (50, 1250))
    np.testing.assert_allclose(few / many, 5.0, rtol=0.4)  # as 1/sqrt(n)


def test_mode_shares():
    centres = modes("two_modes")
    points = draw(np.random.default_rng(0), 1000)
    np.testing.assert_allclose(mode_shares(points, centres), 0.5, atol=0.05)
    only = points[points[:, 0] < 0]
    np.testing.assert_array_equal(mode_shares(only, centres), [1.0, 0.0])
    between = np.tile([0.01, 0.0], (10, 1))
    np.testing.assert_array_equal(mode_shares(between, centres), [0.0, 1.0])
    np.testing.assert_array_equal(mode_shares(between, centres, radius=3 * MODE_STD), [0.0, 0.0])
    assert mode_shares(points, centres, radius=4 * MODE_STD).sum() > 0.99


def test_mistakes_are_named():
    a = np.zeros((6, 2))
    with pytest.raises(ValueError, match=r"found \(6, 2\) and \(6, 3\)"):
        sliced_wasserstein(a, np.zeros((6, 3)))
    with pytest.raises(ValueError, match="finite"):
        sliced_wasserstein(a, a + np.nan)
    with pytest.raises(ValueError, match="finite"):
        mode_shares(a + np.nan, modes("two_modes"))
    with pytest.raises(ValueError, match=r"found \(6, 2\) and \(4, 3\)"):
        mode_shares(a, np.zeros((4, 3)))
