"""Two-dimensional targets: where their points lie, and a fixed set of them as a source."""

import numpy as np
import pytest

from drifting_jax.data.points import MODE_STD, TARGETS, PointsSource, modes, sample_target
from drifting_jax.data.transforms import Augmentation
from drifting_jax.errors import UserError


@pytest.mark.parametrize("target", TARGETS)
def test_draws_are_reproducible_centred_and_of_fair_size(target):
    points = sample_target(target, np.random.default_rng(0), 4000)
    assert points.shape == (4000, 2) and points.dtype == np.float32
    np.testing.assert_array_equal(points, sample_target(target, np.random.default_rng(0), 4000))
    assert not np.array_equal(points, sample_target(target, np.random.default_rng(1), 4000))
    np.testing.assert_allclose(points.mean(axis=0), 0.0, atol=0.1)
    assert 0.5 < np.linalg.norm(points, axis=1).mean() < 3.0
    assert sample_target(target, np.random.default_rng(0), 0).shape == (0, 2)


@pytest.mark.parametrize(("target", "count"), [("two_modes", 2), ("eight_gaussians", 8)])
def test_mixtures_lie_around_their_modes(target, count):
    centres = modes(target)
    assert centres.shape == (count, 2) and centres.dtype == np.float32
    points = sample_target(target, np.random.default_rng(3), 8000)
    offsets = points[:, None] - centres[None]
    nearest = np.linalg.norm(offsets, axis=2).argmin(axis=1)
    np.testing.assert_allclose(np.bincount(nearest) / 8000, 1 / count, atol=0.02)
    own = offsets[np.arange(8000), nearest]
    np.testing.assert_allclose(own.std(axis=0), MODE_STD, rtol=0.05)
    gaps = np.linalg.norm(centres[:, None] - centres[None], axis=2) + 100 * np.eye(count)
    assert gaps.min() > 6 * MODE_STD


def test_checkerboard_fills_every_second_square():
    points = sample_target("checkerboard", np.random.default_rng(0), 8000)
    assert np.abs(points).max() <= 2.0
    squares = np.floor(points + 2.0).astype(int)
    assert np.all(squares.sum(axis=1) % 2 == 0)
    counts = np.bincount(squares[:, 0] * 4 + squares[:, 1], minlength=16)
    np.testing.assert_allclose(counts[counts > 0] / 8000, 1 / 8, atol=0.02)
    assert np.count_nonzero(counts) == 8


def test_moons_are_two_half_circles():
    points = sample_target("two_moons", np.random.default_rng(0), 4000).astype(np.float64)
    centre = np.array([0.5, 0.25])
    upper, lower = points + centre, points - centre
    off_upper = np.abs(np.linalg.norm(upper, axis=1) - 1.0) + 10 * (upper[:, 1] < -0.5)
    off_lower = np.abs(np.linalg.norm(lower, axis=1) - 1.0) + 10 * (lower[:, 1] > 0.5)
    assert np.minimum(off_upper, off_lower).max() < 5 * MODE_STD / 2
    np.testing.assert_allclose(np.mean(off_upper < off_lower), 0.5, atol=0.05)


def test_targets_without_modes():
    assert modes("checkerboard") is None and modes("two_moons") is None


def test_source_holds_fixed_points():
    source = PointsSource("two_moons", 50, 7)
    expected = sample_target("two_moons", np.random.default_rng(7), 50)
    assert len(source) == 50 and source.num_classes == 1 and source.class_names == ["two_moons"]
    np.testing.assert_array_equal(np.stack([source[i]["image"] for i in range(50)]), expected)
    assert source.image_shape == (2,) and source.image_dtype == np.float32
    assert source[3]["label"] == 0 and source[3]["label"].dtype == np.int32
    assert source.labels.shape == (50,)
    drawn = source.draw(3, np.random.default_rng(0), Augmentation(flip=True))
    np.testing.assert_array_equal(drawn["image"], expected[3])


def test_mistakes_are_named():
    with pytest.raises(UserError, match="two_moons; found 'three_modes'"):
        sample_target("three_modes", np.random.default_rng(0), 4)
    with pytest.raises(UserError, match="found 'x'"):
        modes("x")
    with pytest.raises(ValueError, match="found -1"):
        sample_target("two_modes", np.random.default_rng(0), -1)
    with pytest.raises(ValueError, match="num_samples=0"):
        PointsSource("two_modes", 0, 0)
