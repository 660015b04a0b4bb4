"""The scaling of each dimension by its range in the data."""

import numpy as np

from drifting_jax.steps.scaling import Scaling, scaling_of


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
