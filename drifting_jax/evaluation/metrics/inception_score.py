"""The Inception score of a set of images, from their logits, in float64."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from drifting_jax.evaluation.metrics.rows import check_rows, row_blocks


class InceptionScore(NamedTuple):
    """Over the splits: mean, population standard deviation, and each one's score [splits]."""

    mean: float
    std: float
    per_split: np.ndarray


@dataclasses.dataclass(frozen=True)
class Splitting:
    """How images are split: give a count or a size.

    Attributes:
      count: number of splits, of equal size to within an image.
      size: images in a split; the last one has the rest.
      shuffle_seed: of a permutation of the images before; None to keep their order.
    """

    count: int | None = None
    size: int | None = None
    shuffle_seed: int | None = None


TORCH_FIDELITY = Splitting(count=10, shuffle_seed=2020)
ADM = Splitting(size=5000)


def inception_score(logits: np.ndarray, *, splitting: Splitting = TORCH_FIDELITY) -> InceptionScore:
    """Inception score (Salimans et al., arXiv 1606.03498): exp(mean KL(p(y|x) ‖ p(y))) of a split.

    Logarithms are natural. The score rises with the images in a split, so compare only scores of
    the same number of images and the same splitting: `TORCH_FIDELITY` (10 splits of the shuffled
    images) or `ADM` (5000 images each, in their order, as in the evaluator of arXiv 2105.05233).

    Args:
      logits: [n,classes] of any float dtype, of Inception without its last bias; may lie on disk. A
        block of rows at a time is copied to float64.
      splitting: of the images.

    Raises:
      ValueError: not a matrix, logits that are not finite, or splits that cannot be made.
    """
    logits = logits if isinstance(logits, np.ndarray) else np.asarray(logits)
    check_rows(logits, shape="logits [n,classes]")
    scores = np.array([_score(logits, rows) for rows in _splits(len(logits), splitting)])
    return InceptionScore(float(scores.mean()), float(scores.std()), scores)


def _splits(n: int, splitting: Splitting) -> Iterator[np.ndarray]:
    """Row numbers of each split."""
    count, size, seed = splitting.count, splitting.size, splitting.shuffle_seed
    given = [number for number in (count, size) if number is not None]
    if len(given) != 1 or given[0] < 1 or (count or 1) > n:
        raise ValueError(
            f"expected a count of splits from 1 to {n} images, or else a size of 1 or more, "
            f"found {splitting}"
        )
    order = np.arange(n) if seed is None else np.random.RandomState(seed).permutation(n)
    if count is not None:
        bounds = [i * n // count for i in range(count + 1)]
    else:
        bounds = [*range(0, n, given[0]), n]
    for first, last in pairwise(bounds):
        yield order[first:last]


def _score(logits: np.ndarray, rows: np.ndarray) -> float:
    """exp(Σ_y mean_x p(y|x) log p(y|x) − Σ_y p(y) log p(y)) over the rows."""
    # Sorted, so that a file is read from its start to its end.
    rows = np.sort(rows)
    total = np.zeros(logits.shape[1])
    negative_entropy = 0.0
    for _, block in row_blocks(logits, rows):
        log_p = block - block.max(axis=1, keepdims=True)
        log_p -= np.log(np.exp(log_p).sum(axis=1, keepdims=True))
        p = np.exp(log_p)
        total += p.sum(axis=0)
        negative_entropy += np.sum(p * log_p)
    marginal = total[total > 0.0] / len(rows)
    return float(np.exp(negative_entropy / len(rows) - np.sum(marginal * np.log(marginal))))
