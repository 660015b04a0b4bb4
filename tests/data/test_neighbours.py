"""The nearest conditions, against all distances."""

import numpy as np
import pytest

from drifting_jax.data.neighbours import nearest_conditions, nearest_of
from drifting_jax.errors import UserError


def test_neighbours_are_the_nearest_conditions():
    rng = np.random.default_rng(0)
    conditions = rng.uniform(-1, 1, (40, 3)).astype(np.float32)
    number, distance = nearest_conditions(conditions, 5)
    apart = np.sqrt(np.mean((conditions[:, None].astype(float) - conditions[None]) ** 2, axis=-1))
    np.testing.assert_array_equal(number, np.argsort(apart, axis=1)[:, :6])
    np.testing.assert_allclose(distance, np.sort(apart, axis=1)[:, :6], atol=1e-6)


def test_a_condition_is_its_own_first_neighbour_among_equal_ones():
    conditions = np.repeat(np.array([[0.0], [1.0]], np.float32), 6, axis=0)
    number, distance = nearest_conditions(conditions, 2)
    np.testing.assert_array_equal(number[:, 0], np.arange(12))
    assert not distance.any()
    assert all(len(set(row)) == 3 and len({n < 6 for n in row}) == 1 for row in number.tolist())
    with pytest.raises(UserError, match="neighbours must be below the 12 conditions; found 12"):
        nearest_conditions(conditions, 12)


def test_the_nearest_of_others():
    rng = np.random.default_rng(1)
    conditions, others = (rng.uniform(-1, 1, (n, 3)).astype(np.float32) for n in (7, 30))
    apart = np.linalg.norm(conditions[:, None].astype(float) - others[None], axis=-1)
    found = nearest_of(conditions, others, 4)
    np.testing.assert_array_equal(found, np.argsort(apart, axis=1)[:, :4])
