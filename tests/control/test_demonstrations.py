"""Demonstrations of an expert."""

import hashlib

import numpy as np
import pytest

from drifting_jax.control.demonstrations import collect
from drifting_jax.control.environments.environment import DEMONSTRATIONS, episode_seeds
from drifting_jax.control.environments.table import find_environment, open_environment
from drifting_jax.control.environments.two_ways import TwoWays
from drifting_jax.errors import UserError


def test_demonstrations_lead_to_the_goal_when_they_are_repeated():
    found, failures = collect(TwoWays(), episodes=12, seed=0)
    assert failures == 0 and len(found.episode_ends) == 12
    assert found.observations.shape == found.actions.shape == (found.episode_ends[-1], 2)
    assert found.observations.dtype == found.actions.dtype == np.float32
    environment, seeds = TwoWays(), episode_seeds(DEMONSTRATIONS, 0, 12)
    for seed, start, end in zip(seeds, found.episode_starts, found.episode_ends, strict=True):
        assert np.array_equal(environment.reset(seed), found.observations[start])
        steps = [environment.step(action) for action in found.actions[start:end]]
        assert [step.success for step in steps] == [False] * (end - start - 1) + [True]


def test_a_seed_tells_the_demonstrations():
    same = [collect(TwoWays(), episodes=3, seed=5)[0] for _ in range(2)]
    assert same[0].fingerprint == same[1].fingerprint
    other, _ = collect(TwoWays(), episodes=3, seed=6)
    assert not np.array_equal(other.observations[0], same[0].observations[0])
    longer, _ = collect(TwoWays(), episodes=5, seed=5)
    assert np.array_equal(longer.actions[: len(same[0].actions)], same[0].actions)


class Clumsy(TwoWays):
    """An expert that runs into the obstacle unless its seed is a multiple of `luck`."""

    def __init__(self, luck):
        super().__init__()
        self.luck = luck

    def expert(self, seed):
        if self.luck and seed % self.luck == 0:
            return super().expert(seed)
        return lambda observation: np.array([0.9, 0.0], np.float32)


def test_failures_are_left_out_and_counted():
    found, failures = collect(Clumsy(3), episodes=4, seed=0)
    assert len(found.episode_ends) == 4 and failures > 0
    with pytest.raises(UserError, match="solved 0 of 22 episodes; expected 2"):
        collect(Clumsy(0), episodes=2, seed=0)


@pytest.mark.parametrize("name", ["nowhere", "two_ways:x", "other:reach-v3"])
def test_environments_that_do_not_exist(name):
    with pytest.raises(UserError, match=rf"one of two_ways, .*metaworld:TASK.*; found '{name}'"):
        open_environment(name)


def test_a_file_is_run_once_and_its_digits_are_of_what_was_run(tmp_path, capsys):
    path = tmp_path / "mine.py"
    path.write_text("import drifting_jax.control.environments.two_ways as two_ways\nprint('once')\n"
                    "class Mine(two_ways.TwoWays): pass\n")  # fmt: skip
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    maker = find_environment(f"{path}:Mine")
    path.write_text("changed")
    first, second = maker.make(), maker.make()
    assert type(first) is type(second) and first is not second
    assert capsys.readouterr().out == "once\n" and maker.code == expected
    assert find_environment("two_ways").code == ""
