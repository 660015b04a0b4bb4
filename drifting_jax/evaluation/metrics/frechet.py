"""The Fréchet distance between two sets of features, in float64."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from drifting_jax.evaluation.metrics.rows import check_rows, row_blocks

# Of the traces of both covariances: what the quick way to the singular values may be off by.
_TOLERANCE = 1e-9


class GaussianStatistics(NamedTuple):
    """Moments of a set of features: mean [d], covariance [d,d], float64."""

    mean: np.ndarray
    covariance: np.ndarray


class RunningMoments:
    """Count, mean and scatter of features that come in batches; memory d², whatever their number.

    The scatter is the sum of the outer products of the centred rows. Each batch is centred on its
    own mean and joined by the update of Chan, Golub and LeVeque (1979), which does not cancel as a
    difference of sums of squares does: how the rows were split into batches is not seen but in the
    last digits.
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

    def update(self, batch: np.ndarray, *, mask: np.ndarray | None = None) -> None:
        """Takes in a batch.

        Args:
          batch: [b,d] of any float dtype; summed in float64.
          mask: [b] bool, false at rows that do not count, such as those that fill a batch up.

        Raises:
          ValueError: another shape or number of features, or rows that count and are not finite;
            nothing was taken in then.
        """
        batch = np.asarray(batch)
        if batch.shape[1:] != self.mean.shape:
            raise ValueError(f"expected features [b,{len(self.mean)}], found {batch.shape}")
        if mask is not None:
            mask = np.asarray(mask)
            if mask.shape != batch.shape[:1] or mask.dtype != bool:
                raise ValueError(
                    f"expected a mask [{len(batch)}] of bool, found {mask.shape} of {mask.dtype}"
                )
            batch = batch[mask]
        if not len(batch):
            return
        rows = np.asarray(batch, np.float64)
        check_rows(rows)
        mean = rows.mean(axis=0)
        self._join(len(rows), mean, rows - mean)

    def merge(self, other: RunningMoments) -> None:
        """Takes in all rows of another, such as those of another process.

        Raises:
          ValueError: another number of features.
        """
        if other.mean.shape != self.mean.shape:
            raise ValueError(
                f"expected {len(self.mean)} features to merge, found {len(other.mean)}"
            )
        if other.count:
            self._join(other.count, other.mean, np.zeros((0, len(self.mean))))
            self.scatter += other.scatter

    def _join(self, count: int, mean: np.ndarray, centred: np.ndarray) -> None:
        """Joins `count` rows of this mean, and the scatter that their centred rows [b,d] make."""
        total = self.count + count
        shift = mean - self.mean
        # The shift between the means scatters like one more row of this length.
        between = shift * np.sqrt(self.count * count / total)
        rows = np.concatenate([centred, between[None]])
        self.scatter += rows.T @ rows
        self.mean += shift * (count / total)
        self.count = total

    def statistics(self) -> GaussianStatistics:
        """Mean and unbiased covariance of the rows so far, copied.

        Raises:
          ValueError: fewer than 2 rows.
        """
        if self.count < 2:
            raise ValueError(f"expected 2 rows or more for a covariance, found {self.count}")
        return GaussianStatistics(self.mean.copy(), self.scatter / (self.count - 1))

    def to_arrays(self) -> dict[str, np.ndarray]:
        """count [] int64, mean [d], scatter [d,d] float64, copied: for `np.savez` and resuming."""
        return {
            "count": np.array(self.count, np.int64),
            "mean": self.mean.copy(),
            "scatter": self.scatter.copy(),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> RunningMoments:
        """Moments that go on from what `to_arrays` gave.

        Raises:
          ValueError: an array is missing, or they do not fit.
        """
        missing = [name for name in ("count", "mean", "scatter") if name not in arrays]
        if missing:
            raise ValueError(
                "expected moments with count, mean and scatter, "
                f"found no {' and no '.join(missing)}"
            )
        count, mean, scatter = (np.asarray(arrays[name]) for name in ("count", "mean", "scatter"))
        if count.ndim or count < 0 or mean.ndim != 1 or scatter.shape != mean.shape * 2:
            raise ValueError(
                "expected count [] of 0 or more, mean [d] and scatter [d,d], "
                f"found {count.shape}, {mean.shape} and {scatter.shape}"
            )
        moments = cls(len(mean))
        moments.count = int(count)
        moments.mean, moments.scatter = mean.astype(np.float64), scatter.astype(np.float64)
        return moments


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
    """Squared Fréchet (2-Wasserstein) distance between two Gaussians, as FID has it:

        ‖μ_a − μ_b‖² + tr Σ_a + tr Σ_b − 2 tr (Σ_a Σ_b)^½

    The last trace is the sum of the singular values of F_aᵀ F_b, for any factors Σ = F Fᵀ: real and
    defined also where the covariances are singular (constant pixels, fewer samples than features),
    where a general matrix square root returns complex or wrong numbers.

    Args:
      a, b: moments of the two sets.
      factor_of_b: `covariance_factor` of b's, where many are compared with it.

    Raises:
      ValueError: the two have different numbers of features, or are no finite [d] and [d,d].
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
    # Equal sets come out at rounding distance from 0, on either side of it.
    return float(max(np.sum((a.mean - b.mean) ** 2) + spread, 0.0))


def covariance_factor(covariance: np.ndarray) -> np.ndarray:
    """F [d,rank] with F Fᵀ = a positive semi-definite matrix [d,d]."""
    covariance = np.asarray(covariance, np.float64)
    try:
        return np.linalg.cholesky(covariance)
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(covariance)
    # What rounding leaves in place of zeros would count by its square root, a hundred millionth.
    kept = values > len(values) * np.finfo(np.float64).eps * max(values[-1], 0.0)
    return vectors[:, kept] * np.sqrt(values[kept])


def _sum_of_singular_values(matrix: np.ndarray, *, tolerance: float) -> float:
    """Sum of the singular values of a matrix [n,m], to within the tolerance.

    The roots of the eigenvalues of MᵀM take less than half the time of a decomposition of M. They
    lose the small ones, each by ε·largest/(2·root): where that adds up, M itself is decomposed.
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
