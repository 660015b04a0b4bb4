"""Metrics of toys: sets of low-dimensional points against points of the target."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

# A single pair of real sets is easily off by half of the mean over pairs.
_PAIRS = 32


def sliced_wasserstein(a: np.ndarray, b: np.ndarray, *, directions: int = 256) -> float:
    """Sliced 1-Wasserstein distance between two sets of points, exact in each direction.

    It is the mean, over random directions that are always the same, of the 1-D distance: the
    integral of |quantile of a - quantile of b|. With the first power, a few more points in one mode
    than in another count in proportion; squared, they would dominate. The sets may differ in size.
    Two sets drawn from one law are not at distance 0: see `sliced_wasserstein_baseline`.

    Args:
      a: points [n,d], finite.
      b: points [m,d], finite.
      directions: number of directions.

    Raises:
      ValueError: shapes that do not fit, or points that are not finite.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or not (len(a) and len(b)):
        raise ValueError(f"expected [n,d] and [m,d], neither empty, found {a.shape} and {b.shape}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("expected finite points, found some that are not")
    axes = np.random.default_rng(0).normal(size=(a.shape[1], directions))
    axes /= np.linalg.norm(axes, axis=0)
    # Both quantile functions are constant between the levels i/n and j/m, exact as multiples of
    # 1/(n·m): there the i-th point of one set meets the j-th of the other.
    n, m = len(a), len(b)
    levels = np.union1d(np.arange(n + 1) * m, np.arange(m + 1) * n)
    shares = np.diff(levels) / (n * m)
    of_a, of_b = levels[:-1] // m, levels[:-1] // n
    gaps = np.sort(a @ axes, axis=0)[of_a] - np.sort(b @ axes, axis=0)[of_b]
    return float(np.mean(shares @ np.abs(gaps)))


def sliced_wasserstein_baseline(
    draw: Callable[[np.random.Generator, int], np.ndarray], *, num_samples: int, pairs: int = _PAIRS
) -> float:
    """What `sliced_wasserstein` gives for real against real: the mean over many fresh pairs.

    Args:
      draw: (rng, n) -> [n,d] points of the target.
      num_samples: points in each set, as many as there are samples to compare.
      pairs: pairs of sets that the mean is over.
    """
    rng = np.random.default_rng(0)
    distances = [
        sliced_wasserstein(draw(rng, num_samples), draw(rng, num_samples)) for _ in range(pairs)
    ]
    return float(np.mean(distances))


def mode_shares(points: np.ndarray, centres: np.ndarray, *, radius: float = np.inf) -> np.ndarray:
    """Share [m] of the points that fall to each mode: the nearest one, when within `radius`.

    The shares sum to less than 1 if points lie further than `radius` from every mode. Without a
    radius each point counts for its nearest mode.

    Args:
      points: [n,d], finite, n of 1 or more.
      centres: [m,d].
      radius: reach of a mode.

    Raises:
      ValueError: shapes that do not fit, or points that are not finite.
    """
    points, centres = np.asarray(points, np.float64), np.asarray(centres, np.float64)
    if points.ndim != 2 or not len(points) or points.shape[1:] != centres.shape[1:]:
        raise ValueError(f"expected [n,d] and [m,d], found {points.shape} and {centres.shape}")
    if not np.isfinite(points).all():
        raise ValueError("expected finite points, found some that are not")
    distances = np.linalg.norm(points[:, None] - centres[None], axis=2)
    reached = distances.argmin(axis=1)[distances.min(axis=1) <= radius]
    return np.bincount(reached, minlength=len(centres)) / len(points)
