"""Push-T: a random policy, seeds, pictures."""

import importlib.util

import numpy as np
import pytest

from drifting_jax.control.environments.table import open_environment
from drifting_jax.control.rollouts import OUT_OF_TIME, roll_out
from drifting_jax.errors import UserError
from drifting_jax.policy.program import PolicySizes
from drifting_jax.policy.windows import Horizons


class Random:
    """Plans random positions; a row depends on its seed and index alone."""

    horizons, sizes = Horizons(observation=2, prediction=16, action=8), PolicySizes(5, 2)

    def act(self, observations, *, seed, indices):
        rows = [np.random.default_rng([seed, i]).uniform(0, 512, (8, 2)) for i in indices]
        return np.stack(rows)


@pytest.fixture(scope="module")
def push_t():
    if importlib.util.find_spec("gym_pusht") is None:
        pytest.skip("gym-pusht is not installed")
    return open_environment("push_t")


def test_a_random_policy_runs_out_of_time_in_the_same_way(push_t):
    found = [
        roll_out(Random(), [push_t], seed=0, episodes=[0, 1], max_steps=40, draw_every=40)
        for _ in range(2)
    ]
    for a, b in zip(*found, strict=True):
        assert (a.success, a.ending, a.steps) == (False, OUT_OF_TIME, 40)
        assert a.observations.shape == (41, 5) and np.array_equal(a.observations, b.observations)
        assert np.ptp(a.observations[:, 0]) > 20  # the disc moves
        assert [p.shape for p in a.pictures] == [(160, 160, 3)] * 2
    assert not np.array_equal(found[0][0].observations[0], found[0][1].observations[0])


def test_it_has_no_expert(push_t):
    with pytest.raises(UserError, match="has no expert"):
        push_t.expert(0)
