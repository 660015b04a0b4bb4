import numpy as np
import pytest

from drifting_jax.evaluation import neighbors
from drifting_jax.evaluation.neighbors import nearest_distances, precision_recall


def pairwise(a, b):
    return np.sqrt(((a[:, None] - b[None]) ** 2).sum(axis=2))


def share_inside(points, centres, k):
    """Share of the points within some centre's distance to its k-th other centre."""
    radii = np.sort(pairwise(centres, centres), axis=1)[:, k]
    return np.mean((pairwise(points, centres) <= radii[None]).any(axis=1))


@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_by_brute_force(monkeypatch, k):
    monkeypatch.setattr(neighbors, "_ROWS", 7)  # several blocks, the last one short
    rng = np.random.default_rng(0)
    real, fake = rng.normal(size=(40, 3)), 1.5 * rng.normal(size=(25, 3)) + 1.5
    found = precision_recall(real, fake, k=k)
    assert found.precision == share_inside(fake, real, k)
    assert found.recall == share_inside(real, fake, k)
    assert 0 < found.precision < 1 and 0 < found.recall < 1


def test_a_lost_mode_costs_recall_not_precision():
    rng = np.random.default_rng(1)
    left, right = rng.normal(size=(200, 2)), rng.normal(size=(200, 2)) + 100.0
    real = np.concatenate([left, right])
    found = precision_recall(real, left + 0.01, k=5)
    assert found.precision > 0.98 and 0.45 < found.recall <= 0.5
    assert precision_recall(real, real, k=5) == (1.0, 1.0)
    assert precision_recall(left, right, k=5) == (0.0, 0.0)


def test_nearest_distances_by_brute_force(monkeypatch):
    monkeypatch.setattr(neighbors, "_ROWS", 4)
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(10, 5)), rng.normal(size=(13, 5))
    np.testing.assert_allclose(nearest_distances(a, b), pairwise(a, b).min(axis=1), rtol=1e-12)


def test_a_copy_is_at_distance_zero():
    b = np.random.default_rng(3).normal(size=(30, 8)) + 1e4
    np.testing.assert_array_equal(nearest_distances(b[[4, 9]], b), [0.0, 0.0])


def test_mistakes_are_named():
    a = np.zeros((6, 2))
    with pytest.raises(ValueError, match=r"k = 6 points on both sides, found 6 and 6"):
        precision_recall(a, a, k=6)
    with pytest.raises(ValueError, match="k of 1 or more"):
        precision_recall(a, a, k=0)
    with pytest.raises(ValueError, match=r"found \(6, 2\) and \(6, 3\)"):
        nearest_distances(a, np.zeros((6, 3)))
    with pytest.raises(ValueError, match="neither empty"):
        nearest_distances(a, np.zeros((0, 2)))
