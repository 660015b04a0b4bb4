"""The Fréchet distance between two sets of features, in float64."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from drifting_jax.evaluation.metrics.rows import check_rows, row_blocks

# Largest error of the quick way to the singular values, as a share of both covariances' traces.
_TOLERANCE = 1e-9


class GaussianStatistics(NamedTuple):
    """Moments of a set of features: mean [d], covariance [d,d], float64."""

    mean: np.ndarray
    covariance: np.ndarray


class RunningMoments:
    """Count, mean and scatter of features that come in batches, in memory d² for any number.

    The scatter is the sum of the outer products of the centred rows. Each batch is centred on its
    own mean and joined by the update of Chan, Golub and LeVeque (1979), which does not cancel as a
    difference of sums of squares does. The split into batches changes only the last digits.
    """

    def __init__(self, num_features: int):
        """Moments of no rows yet, with `num_features` features each.

        Raises:
          ValueError: no features.
        """
        if num_features < 1:
            raise ValueError(f"expected 1 feature or more, found {num_features}")
        self.count = 0
        self.mean = np.zeros(num_features)
        self.scatter = np.zeros((num_features, num_features))

    def update(self, batch: np.ndarray) -> None:
        """Adds a batch [b,d] of any float dtype, summed in float64.

        Raises:
          ValueError: another shape or number of features, or rows that are not finite; then nothing
            was added.
        """
        batch = np.asarray(batch)
        if batch.shape[1:] != self.mean.shape:
            raise ValueError(f"expected features [b,{len(self.mean)}], found {batch.shape}")
        if not len(batch):
            return
        rows = np.asarray(batch, np.float64)
        check_rows(rows)
        mean, total = rows.mean(axis=0), self.count + len(rows)
        shift = mean - self.mean
        # The shift between the means scatters like one more row of this length.
        between = shift * np.sqrt(self.count * len(rows) / total)
        centred = np.concatenate([rows - mean, between[None]])
        self.scatter += centred.T @ centred
        self.mean += shift * (len(rows) / total)
        self.count = total

    def statistics(self) -> GaussianStatistics:
        """Mean and unbiased covariance of the rows so far, copied.

        Raises:
          ValueError: fewer than 2 rows.
        """
        if self.count < 2:
            raise ValueError(f"expected 2 rows or more for a covariance, found {self.count}")
        return GaussianStatistics(self.mean.copy(), self.scatter / (self.count - 1))


def gaussian_statistics(features: np.ndarray) -> GaussianStatistics:
    """Mean and unbiased covariance of features [n,d], summed in float64.

    An array on disk is read a block at a time.

    Raises:
      ValueError: not a matrix, fewer than 2 rows, or a value that is not finite.
    """
    features = features if isinstance(features, np.ndarray) else np.asarray(features)
    check_rows(features, least=2)
    moments = RunningMoments(features.shape[1])
    for _, block in row_blocks(features):
        moments.update(block)
    return moments.statistics()


def frechet_distance(
    a: GaussianStatistics, b: GaussianStatistics, *, factor_of_b: np.ndarray | None = None
) -> float:
    """Squared Fréchet (2-Wasserstein) distance between two Gaussians, as FID defines it:

        ‖μ_a − μ_b‖² + tr Σ_a + tr Σ_b − 2 tr (Σ_a Σ_b)^½

    The last trace is the sum of the singular values of F_aᵀ F_b, for any factors Σ = F Fᵀ. It is
    real and defined for singular covariances too (constant pixels, fewer samples than features),
    where a general matrix square root returns complex or wrong numbers.

    Args:
      a, b: moments of the two sets.
      factor_of_b: `covariance_factor` of b's covariance; saves time where b is used again.

    Raises:
      ValueError: different numbers of features, or moments that are not finite [d] and [d,d].
    """
    for each in (a, b):
        if each.mean.ndim != 1 or each.covariance.shape != each.mean.shape * 2:
            raise ValueError(
                "expected a mean [d] and a covariance [d,d], "
                f"found {each.mean.shape} and {each.covariance.shape}"
            )
        if not (np.isfinite(each.mean).all() and np.isfinite(each.covariance).all()):
            raise ValueError("expected finite means and covariances, found some that are not")
    if a.mean.shape != b.mean.shape:
        raise ValueError(
            f"expected as many features on both sides, found {a.mean.shape} and {b.mean.shape}"
        )
    traces = np.trace(a.covariance) + np.trace(b.covariance)
    if factor_of_b is None:
        factor_of_b = covariance_factor(b.covariance)
    product = covariance_factor(a.covariance).T @ factor_of_b
    spread = traces - 2.0 * _sum_of_singular_values(product, tolerance=_TOLERANCE * traces)
    # For equal sets rounding leaves a tiny number of either sign.
    return float(max(np.sum((a.mean - b.mean) ** 2) + spread, 0.0))


def covariance_factor(covariance: np.ndarray) -> np.ndarray:
    """F [d,rank] with F Fᵀ = a positive semi-definite matrix [d,d]."""
    covariance = np.asarray(covariance, np.float64)
    try:
        return np.linalg.cholesky(covariance)
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(covariance)
    # Rounding leaves tiny values in place of zeros; their square roots would count, about 1e-8.
    kept = values > len(values) * np.finfo(np.float64).eps * max(values[-1], 0.0)
    return vectors[:, kept] * np.sqrt(values[kept])


def _sum_of_singular_values(matrix: np.ndarray, *, tolerance: float) -> float:
    """Sum of the singular values of a matrix [n,m], to within the tolerance.

    The roots of the eigenvalues of MᵀM take less than half the time of a decomposition of M. Each
    is off by ε·largest/(2·root), which is much for small ones: if these errors add up to more than
    the tolerance, M itself is decomposed.
    """
    if not matrix.size:
        return 0.0
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    squares = np.linalg.eigvalsh(tall.T @ tall)
    info = np.finfo(np.float64)
    roots = np.sqrt(np.maximum(squares, info.tiny))
    if info.eps * squares[-1] * np.sum(0.5 / roots) <= tolerance:
        return float(roots.sum())
    return float(np.linalg.svd(tall, compute_uv=False).sum())
