import json
from pathlib import Path

import numpy as np
import pytest

from drifting_jax.evaluation.metrics.kid import kernel_distance

FIXTURES = Path(__file__).parents[1] / "fixtures/torch/metrics"
RESULTS = json.loads((FIXTURES / "results.json").read_text())["results"]


def normal(seed, n, d):
    return np.random.default_rng(seed).normal(size=(n, d))


def mmd2(x, y):
    """The estimator with its sums written out, over pairs of different rows."""
    kernel = lambda u, v: (u @ v / len(u) + 1.0) ** 3  # noqa: E731
    n, m = len(x), len(y)
    xx = sum(kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    yy = sum(kernel(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return xx + yy - 2 * sum(kernel(u, v) for u in x for v in y) / (n * m)


@pytest.mark.parametrize("name", ["kid_default", "kid_small"])
def test_agrees_with_torch_fidelity(name):
    expected, io = RESULTS[name], np.load(FIXTURES / "io.npz")
    size = expected["settings"]["kid_subset_size"]
    found = kernel_distance(io[f"{name}/A"], io[f"{name}/B"], subset_size=size)
    np.testing.assert_allclose(found.per_subset, io[f"{name}/per_subset_f64"], rtol=1e-11)
    reference = expected["float64_features"]
    mean, std = (reference[f"kernel_inception_distance_{x}"] for x in ("mean", "std"))
    np.testing.assert_allclose(found[:2], (mean, std), rtol=1e-11)


def test_one_subset_of_all_rows_is_the_estimator():
    x, y = normal(0, 7, 3), normal(1, 7, 3) + 0.5
    found = kernel_distance(x, y, subsets=1, subset_size=7)
    np.testing.assert_allclose(found.mean, mmd2(x, y), rtol=1e-12)
    assert found.std == 0.0 and found.per_subset.shape == (1,)
    reverse = kernel_distance(x[::-1], y[::-1], subsets=1, subset_size=7)
    np.testing.assert_allclose(reverse.mean, found.mean, rtol=1e-12)


def test_equal_laws_give_about_zero_of_either_sign():
    found = kernel_distance(normal(2, 600, 4), normal(3, 600, 4), subsets=30, subset_size=100)
    assert found.per_subset.min() < 0 < found.per_subset.max()
    assert (
        abs(found.mean)
        < 0.02
        < kernel_distance(normal(2, 600, 4), 2 * normal(3, 600, 4), subsets=5, subset_size=100).mean
    )


def test_half_precision_is_computed_in_double():
    x, y = normal(4, 40, 8).astype(np.float16), normal(5, 50, 8).astype(np.float16)
    wide = (each.astype(np.float64) for each in (x, y))
    assert (
        kernel_distance(x, y, subsets=3, subset_size=20).mean
        == kernel_distance(*wide, subsets=3, subset_size=20).mean
    )


def test_the_seed_draws_the_subsets():
    x, y = normal(6, 60, 4), normal(7, 60, 4)
    one, same, other = (
        kernel_distance(x, y, subsets=4, subset_size=20, seed=seed).per_subset for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, same)
    assert not np.any(one == other)


def test_mistakes_are_named():
    x = normal(8, 30, 4)
    with pytest.raises(ValueError, match=r"found 30 and 20; .*subset_size=20 or less"):
        kernel_distance(x, x[:20])
    with pytest.raises(ValueError, match="as many features on both sides, found 4 and 3"):
        kernel_distance(x, x[:, :3])
    with pytest.raises(ValueError, match="subsets=0 subset_size=10"):
        kernel_distance(x, x, subsets=0, subset_size=10)
    with pytest.raises(ValueError, match="found 2 rows of 30 that are not"):
        bad = x.copy()
        bad[[3, 5], 1] = np.inf
        kernel_distance(x, bad, subset_size=10)
    with pytest.raises(ValueError, match=r"features \[n,d\] .* found \(4,\)"):
        kernel_distance(x[0], x, subset_size=10)
