"""The kernel Inception distance (KID) between two sets of features, in float64."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from drifting_jax.evaluation.metrics.rows import check_rows


class KernelDistance(NamedTuple):
    """Over the subsets: mean, population standard deviation, and each one's value [subsets]."""

    mean: float
    std: float
    per_subset: np.ndarray


def kernel_distance(
    a: np.ndarray,
    b: np.ndarray,
    *,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 2020,
) -> KernelDistance:
    """KID (Bińkowski et al., arXiv 1801.01401): unbiased MMD² under k(x,y) = (x·y/d + 1)³.

    The mean over random subsets, drawn as torch-fidelity does: for each one `subset_size` rows of a
    without replacement, then of b, from `np.random.RandomState(seed)`. So the draw depends on the
    order of a and b; torch-fidelity has the generated set first.

    Args:
      a: features [n,d] of any float dtype.
      b: features [m,d].
      subsets: number of subsets.
      subset_size: rows of each side in a subset.
      seed: of the draws.

    Raises:
      ValueError: shapes that do not fit, rows that are not finite, or fewer rows than a subset has.
    """
    a, b = np.asarray(a), np.asarray(b)
    for each in (a, b):
        check_rows(each)
    if a.shape[1] != b.shape[1]:
        raise ValueError(
            f"expected as many features on both sides, found {a.shape[1]} and {b.shape[1]}"
        )
    if subsets < 1 or subset_size < 2:
        raise ValueError(
            "expected 1 subset or more of 2 rows or more, "
            f"found subsets={subsets} subset_size={subset_size}"
        )
    if subset_size > min(len(a), len(b)):
        raise ValueError(
            f"expected subset_size={subset_size} rows or more on both sides, "
            f"found {len(a)} and {len(b)}; "
            f"give more samples, or subset_size={min(len(a), len(b))} or less"
        )
    rng = np.random.RandomState(seed)
    values = np.empty(subsets)
    for i in range(subsets):
        rows_a = rng.choice(len(a), subset_size, replace=False)
        rows_b = rng.choice(len(b), subset_size, replace=False)
        values[i] = _unbiased_mmd2(a[rows_a].astype(np.float64), b[rows_b].astype(np.float64))
    return KernelDistance(float(values.mean()), float(values.std()), values)


def _unbiased_mmd2(x: np.ndarray, y: np.ndarray) -> float:
    """Squared maximum mean discrepancy of x [m,d] and y [m,d]; no row is paired with itself."""
    pairs = len(x) * (len(x) - 1)
    within = (_other_pairs(_kernel(x, x)) + _other_pairs(_kernel(y, y))) / pairs
    return within - 2.0 * _kernel(x, y).mean()


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(x·y/d + 1)³ [n,m]."""
    shifted = x @ y.T
    shifted /= x.shape[1]
    shifted += 1.0
    cubed = shifted * shifted
    cubed *= shifted
    return cubed


def _other_pairs(kernel: np.ndarray) -> float:
    """Sum of a square matrix without its diagonal."""
    return kernel.sum() - np.trace(kernel)
