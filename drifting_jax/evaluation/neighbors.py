"""Measures that look at nearest neighbours: precision, recall, distance to the training set."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

# Rows compared at once against the other set: bounds the memory, 1024 x 60000 doubles are 0.5 GB.
_ROWS = 1024


class PrecisionRecall(NamedTuple):
    """Both in [0,1]: how real the fakes look, and how much of the real they reach."""

    precision: float
    recall: float


def precision_recall(real: np.ndarray, fake: np.ndarray, *, k: int = 5) -> PrecisionRecall:
    """Improved precision and recall (Kynkäänniemi et al., arXiv 1904.06991).

    The manifold of a set is the union of the balls around its points that reach their k-th nearest
    neighbour in the set. Precision is the share of fakes in the manifold of the real, recall the
    share of the real in the manifold of the fakes.

    Args:
      real: features [n,d], n > k.
      fake: features [m,d], m > k.
      k: neighbours that make a ball.

    Raises:
      ValueError: shapes that do not fit, or too few points.
    """
    real, fake = _matching(real, fake)
    if k < 1 or min(len(real), len(fake)) <= k:
        raise ValueError(
            f"expected k of 1 or more and more than k = {k} points on both sides, "
            f"found {len(real)} and {len(fake)}"
        )
    return PrecisionRecall(
        precision=_share_inside(fake, real, _squared_radii(real, k)),
        recall=_share_inside(real, fake, _squared_radii(fake, k)),
    )


def nearest_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Euclidean distance [n] from each point of a [n,d] to the nearest point of b [m,d].

    Exact where points coincide: a copy is at distance 0.

    Raises:
      ValueError: shapes that do not fit, or no points.
    """
    a, b = _matching(a, b)
    nearest = np.concatenate([squared.argmin(axis=1) for _, squared in _blocks(a, b)])
    # The product form that finds the neighbour cancels badly near 0, so the distance is taken anew.
    return np.linalg.norm(a - b[nearest], axis=1)


def _matching(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64, moved to a common centre: distances stay, cancellation shrinks."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or not (len(a) and len(b)):
        raise ValueError(f"expected [n,d] and [m,d], neither empty, found {a.shape} and {b.shape}")
    centre = b.mean(axis=0)
    return a - centre, b - centre


def _blocks(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Pairs of a first row and the squared distances [rows, m] from there on, a block at a time."""
    b_squared = np.sum(b * b, axis=1)
    for first in range(0, len(a), _ROWS):
        rows = a[first : first + _ROWS]
        squared = np.sum(rows * rows, axis=1)[:, None] + b_squared[None] - 2.0 * rows @ b.T
        yield first, np.maximum(squared, 0.0)


def _squared_radii(points: np.ndarray, k: int) -> np.ndarray:
    """Squared distance [n] from each point to its k-th nearest other one."""
    radii = []
    for first, squared in _blocks(points, points):
        own = np.arange(len(squared))
        squared[own, first + own] = np.inf
        radii.append(np.partition(squared, k - 1, axis=1)[:, k - 1])
    return np.concatenate(radii)


def _share_inside(points: np.ndarray, centres: np.ndarray, squared_radii: np.ndarray) -> float:
    """Share of the points that lie in at least one ball."""
    inside = [
        (squared <= squared_radii[None]).any(axis=1) for _, squared in _blocks(points, centres)
    ]
    return float(np.concatenate(inside).mean())
