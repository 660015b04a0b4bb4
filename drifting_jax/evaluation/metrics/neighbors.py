"""Metrics of nearest neighbours: precision, recall, density, coverage, distances to copies."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from drifting_jax.evaluation.metrics.distances import (
    DEFAULT_SIZES,
    BlockSizes,
    memberships,
    nearest,
)
from drifting_jax.evaluation.metrics.rows import check_rows


class PrecisionRecall(NamedTuple):
    """Both in [0,1]: how real the fakes look, and how much of the real set they reach."""

    precision: float
    recall: float


class ManifoldMetrics(NamedTuple):
    """precision, recall and coverage in [0,1]; density of 0 or more, about 1 for equal sets."""

    precision: float
    recall: float
    density: float
    coverage: float


class Neighbors(NamedTuple):
    """indices [n,count] int64 and Euclidean distances [n,count] float64, the nearest first."""

    indices: np.ndarray
    distances: np.ndarray


def manifold_metrics(
    real: np.ndarray,
    fake: np.ndarray,
    *,
    k: int = 5,
    mesh: Mesh | None = None,
    sizes: BlockSizes = DEFAULT_SIZES,
) -> ManifoldMetrics:
    """Precision and recall, density and coverage, with the distances computed once.

    Each point has a ball that reaches its k-th nearest other point of its own set. Precision
    (Kynkäänniemi et al., arXiv 1904.06991) is the share of fakes in a closed ball (≤) of a real
    point, recall the share of real points in a closed ball of a fake. Density and coverage (Naeem
    et al., arXiv 2002.09797) take open balls (<) of the real points, as their authors' code does:
    density is the number of pairs of a fake in a real ball, over k times the fakes; coverage is the
    share of real balls that hold a fake.

    Args:
      real: features [n,d] of any float dtype, n > k; may lie on disk.
      fake: features [m,d], m > k.
      k: neighbours that make a ball. The metrics depend on it, and on n and m.
      mesh: devices that share the work; without it one device, or the host for few pairs. The
        metrics do not depend on it. Every process calls with the same sets.
      sizes: how the work is split; the metrics do not depend on it.

    Raises:
      ValueError: shapes that do not fit, rows that are not finite, or too few points.
    """
    real, fake = _checked(real, fake)
    if k < 1 or min(len(real), len(fake)) <= k:
        raise ValueError(
            f"expected k of 1 or more and more than k = {k} points on both sides, "
            f"found {len(real)} and {len(fake)}"
        )
    radii = [
        nearest(x, x, k, others=True, mesh=mesh, sizes=sizes).squared[:, -1] for x in (real, fake)
    ]
    found = memberships(real, fake, *radii, mesh=mesh, sizes=sizes)
    return ManifoldMetrics(
        precision=float(found.b_in_a.mean()),
        recall=float(found.a_in_b.mean()),
        density=float(found.inside_a.sum() / (k * len(fake))),
        coverage=float((found.inside_a > 0).mean()),
    )


def precision_recall(
    real: np.ndarray,
    fake: np.ndarray,
    *,
    k: int = 5,
    mesh: Mesh | None = None,
    sizes: BlockSizes = DEFAULT_SIZES,
) -> PrecisionRecall:
    """Improved precision and recall alone: see `manifold_metrics`."""
    found = manifold_metrics(real, fake, k=k, mesh=mesh, sizes=sizes)
    return PrecisionRecall(found.precision, found.recall)


def nearest_indices(
    a: np.ndarray,
    b: np.ndarray,
    *,
    count: int = 1,
    mesh: Mesh | None = None,
    sizes: BlockSizes = DEFAULT_SIZES,
) -> Neighbors:
    """The `count` nearest rows of b [m,d] for each row of a [n,d].

    Exact where points coincide: a copy is at distance 0. Rows at equal distances are in the order
    of b; if a tie extends beyond `count`, any of its rows may be left out.

    Args:
      a: features of any float dtype; may lie on disk.
      b: likewise, m of `count` or more.
      count: neighbours of each row.
      mesh, sizes: as in `manifold_metrics`.

    Raises:
      ValueError: shapes that do not fit, rows that are not finite, or too few of b.
    """
    a, b = _checked(a, b)
    if not 1 <= count <= len(b):
        raise ValueError(f"expected a count from 1 to {len(b)} rows of b, found {count}")
    found = nearest(a, b, count, mesh=mesh, sizes=sizes)
    return Neighbors(found.indices, np.sqrt(found.squared))


def nearest_distances(
    a: np.ndarray, b: np.ndarray, *, mesh: Mesh | None = None, sizes: BlockSizes = DEFAULT_SIZES
) -> np.ndarray:
    """Euclidean distance [n] from each row of a to the nearest of b: see `nearest_indices`."""
    return nearest_indices(a, b, mesh=mesh, sizes=sizes).distances[:, 0]


def _checked(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a, b = (x if isinstance(x, np.ndarray) else np.asarray(x) for x in (a, b))
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or not (len(a) and len(b)):
        raise ValueError(f"expected [n,d] and [m,d], neither empty, found {a.shape} and {b.shape}")
    for each in (a, b):
        check_rows(each)
    return a, b
