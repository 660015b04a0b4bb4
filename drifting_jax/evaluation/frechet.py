"""The Fréchet distance between two sets of features, in float64."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class GaussianStatistics(NamedTuple):
    """Moments of a set of features: mean [d], covariance [d,d], float64."""

    mean: np.ndarray
    covariance: np.ndarray


def gaussian_statistics(features: np.ndarray) -> GaussianStatistics:
    """Mean and unbiased covariance of features [n,d], summed in float64.

    Raises:
      ValueError: not a matrix, fewer than 2 rows, or a value that is not finite.
    """
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"expected features [n,d] with n of 2 or more, found {features.shape}")
    if not np.isfinite(features).all():
        bad = np.count_nonzero(~np.isfinite(features).all(axis=1))
        raise ValueError(
            f"expected finite features, found {bad} rows of {len(features)} that are not"
        )
    mean = features.mean(axis=0)
    centred = features - mean
    return GaussianStatistics(mean, centred.T @ centred / (len(features) - 1))


def frechet_distance(a: GaussianStatistics, b: GaussianStatistics) -> float:
    """Squared Fréchet (2-Wasserstein) distance between two Gaussians, as FID has it:

        ‖μ_a − μ_b‖² + tr Σ_a + tr Σ_b − 2 tr (Σ_a Σ_b)^½

    The last trace is the sum of the singular values of Σ_a^½ Σ_b^½, real and defined also where the
    covariances are singular (constant pixels, fewer samples than features), where a general matrix
    square root returns complex or wrong numbers.

    Raises:
      ValueError: the two have different numbers of features.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(
            f"expected as many features on both sides, found {a.mean.shape} and {b.mean.shape}"
        )
    product = _square_root(a.covariance) @ _square_root(b.covariance)
    overlap = np.linalg.svd(product, compute_uv=False).sum()
    means = np.sum((a.mean - b.mean) ** 2)
    spread = np.trace(a.covariance) + np.trace(b.covariance) - 2.0 * overlap
    # Equal sets come out at rounding distance from 0, on either side of it.
    return float(max(means + spread, 0.0))


def _square_root(covariance: np.ndarray) -> np.ndarray:
    """The symmetric square root of a positive semi-definite matrix [d,d]."""
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
