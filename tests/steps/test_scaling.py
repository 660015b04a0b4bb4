"""The scaling of each dimension by its range in the data."""

import numpy as np
import pytest

from drifting_jax.steps.scaling import Scaling, far_outside, scaling_of


def test_scaling_maps_the_range_to_one_and_centres_constants():
    values = np.array([[1.0, 5.0, -2.0], [3.0, 5.0, 2.0], [2.0, 5.0, 0.0]], np.float32)
    scaling = scaling_of(values)
    found = scaling.scaled(values)
    np.testing.assert_allclose(found, [[-1, 0, -1], [1, 0, 1], [0, 0, 0]], atol=1e-6)
    np.testing.assert_allclose(scaling.unscaled(found), values, atol=1e-6)
    assert np.all(scaling.unscaled(np.ones((2, 3), np.float32))[:, 1] == 5)
    np.testing.assert_allclose(scaling.scaled(values + 0.5)[:, 1], 0.5)
    batch = np.stack([values, values + 1])
    np.testing.assert_allclose(scaling.scaled(batch)[0], found, atol=1e-6)


def test_a_scaling_covers_another():
    values = np.array([[0, 0, 3], [1, 2, 3]], np.float32)
    earlier = Scaling(np.float32([0.5, 4, 3]), np.float32([2, 1, 0]))  # [-1.5, 2.5], [3, 5], 3
    found = scaling_of(values, earlier)
    np.testing.assert_array_equal(found.centre, [0.5, 2.5, 3])
    np.testing.assert_array_equal(found.half_range, [2, 2.5, 0])


def test_a_scaling_covers_itself_bit_for_bit():
    """Also where float32 rounds the ends of the range to values inside of it."""
    rng = np.random.default_rng(0)
    centre, reach = rng.normal(size=4000) * 100, 10.0 ** rng.uniform(-6, 3, 4000)
    values = (centre + reach * rng.uniform(-1, 1, (9, 4000))).astype(np.float32)
    first = scaling_of(values)
    inner = first.centre - first.half_range, first.centre + first.half_range
    assert np.any(values.min(axis=0) < inner[0]) and np.any(values.max(axis=0) > inner[1])
    found = scaling_of(values, first)
    for part in ("centre", "half_range"):
        np.testing.assert_array_equal(getattr(found, part), getattr(first, part))
        assert getattr(found, part).dtype == np.float32
    # What is more than rounding makes it wider.
    farther = scaling_of(values + 0.01 * first.half_range, first).half_range
    wide = first.half_range > 1e-2
    np.testing.assert_array_less(first.half_range[wide], farther[wide])


def test_the_farthest_input_outside_of_the_range_is_named():
    scaling = scaling_of(np.float32([[0, -5, 7], [1, 5, 7]]))  # [0, 1], [-5, 5], 7 alone
    inside = np.float32([[1.4, 9.9, 8.9], [-0.4, -9.9, 5.1]])
    assert far_outside(scaling, inside) is None
    assert far_outside(scaling, np.zeros((0, 3), np.float32)) is None
    values = np.stack([inside, inside, inside])  # [3, 2, 3]
    values[1, 0, 1] = 10.5  # by more than half of the range
    values[2, 1, 0] = -3.0
    found = far_outside(scaling, values)
    assert found == (2, 0, -3.0, 0.0, 1.0)
    assert found.words == (
        "far outside of the training range: -3 in dimension 0, where training had 0 to 1"
    )
    constant = far_outside(scaling, np.float32([[0, 0, 9.5]]))
    assert constant == (1, 2, 9.5, 7.0, 7.0)
    assert far_outside(scaling, np.float32([[np.inf, 0, 7]])).value == pytest.approx(np.inf)
    unknown = far_outside(scaling, np.float32([[np.nan, 50, 7], [0, 0, 7]]))  # NaN is not far
    assert unknown == (1, 1, 50.0, -5.0, 5.0)
    assert far_outside(scaling, np.float32([[np.nan, 0, 7]])) is None
