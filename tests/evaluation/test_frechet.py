import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from drifting_jax.data.sources import DigitsSource, as_arrays
from drifting_jax.evaluation.metrics.frechet import (
    GaussianStatistics,
    RunningMoments,
    frechet_distance,
    gaussian_statistics,
)

FIXTURES = Path(__file__).parents[1] / "fixtures/torch/metrics"
RESULTS = json.loads((FIXTURES / "results.json").read_text())["results"]


def features(seed, n, d):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + rng.normal(size=d)


def by_square_root(a, b):
    """The textbook formula, with scipy's general matrix square root."""
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    means = np.sum((a.mean(axis=0) - b.mean(axis=0)) ** 2)
    return means + np.trace(cov_a) + np.trace(cov_b) - 2 * np.trace(root)


def distance(a, b):
    return frechet_distance(gaussian_statistics(a), gaussian_statistics(b))


@pytest.mark.parametrize("d", [1, 2, 12])
def test_agrees_with_the_matrix_square_root(d):
    a, b = features(0, 200, d), features(1, 90, d)
    expected = by_square_root(a, b) if d > 1 else None
    if d == 1:  # between normal laws on a line: (μ−μ')² + (σ−σ')²
        expected = (a.mean() - b.mean()) ** 2 + (a.std(ddof=1) - b.std(ddof=1)) ** 2
    np.testing.assert_allclose(distance(a, b), expected, rtol=1e-10)
    np.testing.assert_allclose(distance(b, a), expected, rtol=1e-10)


def test_statistics_are_float64_and_survive_a_large_mean():
    a = features(2, 50, 4).astype(np.float32)
    found = gaussian_statistics(a)
    assert found.mean.dtype == found.covariance.dtype == np.float64
    np.testing.assert_allclose(found.covariance, np.cov(a.astype(np.float64), rowvar=False))
    shifted = gaussian_statistics(a.astype(np.float64) + 1e6)
    np.testing.assert_allclose(shifted.covariance, found.covariance, rtol=1e-7)


def test_singular_covariances():
    # Fewer samples than features, and features that never vary.
    a, b = features(3, 8, 20), features(4, 9, 20)
    a[:, 5] = b[:, 5] = 0.25
    assert distance(a, a) == pytest.approx(0.0, abs=1e-9)
    np.testing.assert_allclose(distance(a, a + 2.0), 20 * 4.0, rtol=1e-9)
    # Laws on orthogonal lines have no overlap: the traces add up.
    on_x = GaussianStatistics(np.zeros(2), np.diag([4.0, 0.0]))
    on_y = GaussianStatistics(np.zeros(2), np.diag([0.0, 9.0]))
    np.testing.assert_allclose(frechet_distance(on_x, on_y), 13.0)
    np.testing.assert_allclose(frechet_distance(on_x, on_x), 0.0)


def test_rotation_and_scale():
    a, b = features(5, 100, 6), features(6, 100, 6)
    rotation, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))
    np.testing.assert_allclose(distance(a @ rotation, b @ rotation), distance(a, b))
    np.testing.assert_allclose(distance(3 * a, 3 * b), 9 * distance(a, b))


def test_digits_against_digits():
    train, test = (as_arrays(DigitsSource(split))[0] for split in ("train", "test"))
    train, test = (images.reshape(len(images), -1) / 127.5 - 1.0 for images in (train, test))
    found = distance(train, test)
    assert 0.34 < found < 0.36
    # Constant border pixels make both covariances singular; a little noise lets sqrtm speak.
    ridge = 1e-7 * np.eye(64)
    a, b = gaussian_statistics(train), gaussian_statistics(test)
    root = scipy.linalg.sqrtm((a.covariance + ridge) @ (b.covariance + ridge)).real
    expected = np.sum((a.mean - b.mean) ** 2) + np.trace(a.covariance + b.covariance - 2 * root)
    np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.parametrize(
    "name", ["fid_full", "fid_larger", "fid_rank_deficient", "fid_one_rank_deficient"]
)
def test_agrees_with_torch_fidelity_and_pytorch_fid(name):
    io = np.load(FIXTURES / "io.npz")
    a, b = (gaussian_statistics(io[f"{name}/{side}"]) for side in "AB")
    for found, i in ((a, 1), (b, 2)):
        np.testing.assert_allclose(found.mean, io[f"{name}/mu{i}"], rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(found.covariance, io[f"{name}/sigma{i}"], atol=1e-12)
    found, expected = frechet_distance(a, b), RESULTS[name]
    for other in ("pytorch_fid_sqrtm_f64", "torch_fidelity_f64"):
        # They scatter themselves where a rank is deficient.
        np.testing.assert_allclose(found, expected[other], rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(found, expected["exact_nuclear_norm_f64"], rtol=1e-10)
    assert frechet_distance(b, a) == pytest.approx(found, rel=1e-11)
    assert frechet_distance(a, a) < 1e-10


def test_small_singular_values_are_not_lost():
    # Their squares are below the rounding of the largest one's.
    values = np.concatenate([[1.0], np.full(50, 1e-9)])
    a = GaussianStatistics(np.zeros(51), np.diag(values))
    b = GaussianStatistics(np.zeros(51), np.diag(4 * values))
    np.testing.assert_allclose(frechet_distance(a, b), values.sum(), rtol=1e-12)
    nothing = GaussianStatistics(np.zeros(51), np.zeros((51, 51)))
    np.testing.assert_allclose(frechet_distance(a, nothing), values.sum(), rtol=1e-12)


def test_the_order_of_rows_changes_nothing():
    a, b = features(7, 60, 5), features(8, 50, 5)
    order = np.random.default_rng(0).permutation(60)
    np.testing.assert_allclose(distance(a[order], b), distance(a, b), rtol=1e-11)


@pytest.mark.parametrize("sizes", [[300], [1] * 300, [7] * 42 + [6], [0, 299, 1]])
def test_moments_of_batches_are_those_of_all(sizes):
    x = features(9, 300, 6) * 0.01 + 50.0
    moments = RunningMoments(6)
    for batch in np.split(x, np.cumsum(sizes)[:-1]):
        moments.update(batch)
    found = moments.statistics()
    assert moments.count == 300 and found.covariance.dtype == np.float64
    np.testing.assert_allclose(found.mean, x.mean(axis=0), rtol=1e-14)
    expected = np.cov(x, rowvar=False)
    np.testing.assert_allclose(found.covariance, expected, rtol=1e-10)
    # Far from 0 the batches' means round: still it is twelve digits of the spread.
    np.testing.assert_allclose(found.covariance, expected, atol=1e-12 * np.trace(expected))
    np.testing.assert_array_equal(found.covariance, found.covariance.T)


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float32])
def test_moments_sum_in_double(dtype):
    x = (features(11, 50, 3) + 100.0).astype(dtype)
    moments = RunningMoments(3)
    moments.update(jnp.asarray(x))
    expected = np.cov(x.astype(np.float64), rowvar=False)
    np.testing.assert_allclose(moments.statistics().covariance, expected, rtol=1e-12)


def test_mistakes_in_moments_are_named():
    moments = RunningMoments(3)
    with pytest.raises(ValueError, match=r"features \[b,3\], found \(5, 2\)"):
        moments.update(np.zeros((5, 2)))
    with pytest.raises(ValueError, match="found 2 rows of 5 that are not"):
        moments.update(np.where(np.arange(5)[:, None] < 2, np.inf, np.ones((5, 3))))
    assert moments.count == 0
    with pytest.raises(ValueError, match="2 rows or more for a covariance, found 0"):
        moments.statistics()
    with pytest.raises(ValueError, match="1 feature or more, found 0"):
        RunningMoments(0)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"n of 2 or more, found \(1, 3\)"):
        gaussian_statistics(np.zeros((1, 3)))
    with pytest.raises(ValueError, match="found 1 rows of 4"):
        gaussian_statistics(np.array([[0.0], [1.0], [np.nan], [2.0]]))
    with pytest.raises(ValueError, match=r"\(3,\) and \(2,\)"):
        distance(features(0, 9, 3), features(0, 9, 2))
    good = gaussian_statistics(features(0, 9, 2))
    with pytest.raises(ValueError, match=r"found \(2,\) and \(2, 1\)"):
        frechet_distance(good, GaussianStatistics(good.mean, good.covariance[:, :1]))
    with pytest.raises(ValueError, match="expected finite means and covariances"):
        frechet_distance(good, GaussianStatistics(good.mean * np.nan, good.covariance))
