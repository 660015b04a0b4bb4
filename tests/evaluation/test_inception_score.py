import json
from pathlib import Path

import numpy as np
import pytest
import scipy.special

from drifting_jax.evaluation.metrics.inception_score import (
    ADM,
    TORCH_FIDELITY,
    Splitting,
    inception_score,
)

FIXTURES = Path(__file__).parents[1] / "fixtures/torch/metrics"
RESULTS = json.loads((FIXTURES / "results.json").read_text())["results"]
WHOLE = Splitting(count=1)


def logits(seed, n=60, classes=7):
    return (3 * np.random.default_rng(seed).normal(size=(n, classes))).astype(np.float32)


def score(part):
    """exp of the mean KL divergence, as it is defined."""
    p = scipy.special.softmax(part.astype(np.float64), axis=1)
    return np.exp(np.mean(np.sum(p * np.log(p / p.mean(axis=0)), axis=1)))


@pytest.mark.parametrize("name", ["isc_c50", "isc_uneven"])
@pytest.mark.parametrize(
    ("splitting", "key"),
    [
        (TORCH_FIDELITY, "shuffle_seed2020_splits10"),
        (Splitting(count=10), "noshuffle_splits10"),
        (WHOLE, "noshuffle_splits1"),
    ],
)
def test_agrees_with_torch_fidelity(name, splitting, key):
    io = np.load(FIXTURES / "io.npz")
    found = inception_score(io[f"{name}/logits"], splitting=splitting)
    expected = [RESULTS[name][key][f"inception_score_{x}"] for x in ("mean", "std")]
    np.testing.assert_allclose(found[:2], expected, rtol=1e-11)


def test_splits_of_a_size_keep_the_order_and_the_rest():
    x = logits(0)
    found = inception_score(x, splitting=Splitting(size=25))
    expected = [score(x[:25]), score(x[25:50]), score(x[50:])]
    np.testing.assert_allclose(found.per_split, expected, rtol=1e-12)
    np.testing.assert_allclose(found[:2], (np.mean(expected), np.std(expected)), rtol=1e-12)
    assert inception_score(x, splitting=ADM).per_split.shape == (1,)


def test_blocks_and_files_change_nothing(tmp_path):
    x = logits(1, n=2 * 4096 + 900)  # several blocks of rows
    on_disk = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", x.dtype, x.shape)
    on_disk[:] = x
    found = inception_score(on_disk, splitting=Splitting(size=4096 + 500))
    expected = [score(part) for part in np.split(x, [4096 + 500])]
    np.testing.assert_allclose(found.per_split, expected, rtol=1e-12)
    whole = inception_score(on_disk, splitting=Splitting(count=1, shuffle_seed=5))
    np.testing.assert_allclose(whole.mean, score(x), rtol=1e-12)


def test_its_bounds_and_what_it_ignores():
    # Sure of every image and even over the classes: the number of classes. The same for all: 1.
    sure = 2000.0 * np.eye(5)[np.arange(50) % 5]
    np.testing.assert_allclose(inception_score(sure, splitting=WHOLE).mean, 5.0)
    np.testing.assert_allclose(inception_score(np.ones((50, 5))).mean, 1.0)
    x = logits(2).astype(np.float64)
    expected = inception_score(x, splitting=WHOLE).mean
    np.testing.assert_allclose(inception_score(x + 1e3, splitting=WHOLE).mean, expected)
    np.testing.assert_allclose(inception_score(x[::-1], splitting=WHOLE).mean, expected)


def test_mistakes_are_named():
    x = logits(3)
    for splitting in (Splitting(), Splitting(count=0), Splitting(size=-1), Splitting(count=61)):
        with pytest.raises(ValueError, match="count of splits from 1 to 60 images, or else a size"):
            inception_score(x, splitting=splitting)
    with pytest.raises(ValueError, match="count of splits"):
        inception_score(x, splitting=Splitting(count=2, size=5))
    with pytest.raises(ValueError, match=r"logits \[n,classes\] .* found \(7,\)"):
        inception_score(x[0])
    x[4, 2] = np.nan
    with pytest.raises(ValueError, match="expected finite logits, found 1 rows of 60"):
        inception_score(x)
