import numpy as np
import pytest
import scipy.linalg

from drifting_jax.data.sources import DigitsSource, as_arrays
from drifting_jax.evaluation.frechet import (
    GaussianStatistics,
    frechet_distance,
    gaussian_statistics,
)


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


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"n of 2 or more, found \(1, 3\)"):
        gaussian_statistics(np.zeros((1, 3)))
    with pytest.raises(ValueError, match="found 1 rows of 4"):
        gaussian_statistics(np.array([[0.0], [1.0], [np.nan], [2.0]]))
    with pytest.raises(ValueError, match=r"\(3,\) and \(2,\)"):
        distance(features(0, 9, 3), features(0, 9, 2))
