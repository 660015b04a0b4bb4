"""Rollouts: windows, plans, batches and their independence."""

import numpy as np
import pytest
from expert_planner import PLANS, ExpertPlanner, StraightPlanner

from drifting_jax.control.environments.environment import (
    DEMONSTRATIONS,
    NOISE,
    ROLLOUTS,
    episode_seeds,
)
from drifting_jax.control.environments.two_ways import TwoWays
from drifting_jax.control.rollouts import OUT_OF_TIME, roll_out
from drifting_jax.errors import UserError
from drifting_jax.policy.program import PolicySizes


def of_experts(count, *, at_once, seed=3, episodes=None, **more):
    """A planner and its episodes."""
    planner = ExpertPlanner(TwoWays(), episode_seeds(ROLLOUTS, seed, count))
    environments = [TwoWays() for _ in range(at_once)]
    chosen = range(count) if episodes is None else episodes
    return planner, roll_out(planner, environments, seed=seed, episodes=chosen, **more)


def test_experts_solve_every_episode_both_ways():
    planner, episodes = of_experts(40, at_once=40)
    assert [e.index for e in episodes] == list(range(40))
    assert all(e.success for e in episodes)
    assert {e.ending for e in episodes} == {"above", "below"}
    assert len(planner.calls) == max(e.steps for e in episodes)  # one plan for all that run
    for episode in episodes:
        moves = np.linalg.norm(np.diff(episode.observations, axis=0), axis=1)
        assert moves.max() < 0.13 and episode.observations.dtype == np.float32


def test_an_episode_does_not_depend_on_how_many_run_or_which():
    _, together = of_experts(7, at_once=7)
    _, few = of_experts(7, at_once=3)
    _, one = of_experts(7, at_once=2, episodes=[5])
    for found, expected in [*zip(few, together, strict=True), (one[0], together[5])]:
        assert np.array_equal(found.observations, expected.observations)
        assert (found.index, found.ending) == (expected.index, expected.ending)


def test_windows_begin_with_copies_and_batches_keep_their_size():
    planner, episodes = of_experts(5, at_once=4)
    windows, indices = planner.calls[0]
    assert windows.shape == (4, 2, 2)
    assert np.array_equal(windows[:, 0], windows[:, 1])
    assert indices.tolist() == [0, PLANS, 2 * PLANS, 3 * PLANS]
    windows, indices = planner.calls[1]
    assert indices.tolist() == [1, PLANS + 1, 2 * PLANS + 1, 3 * PLANS + 1]
    for row, episode in zip(windows, episodes[:4], strict=True):
        assert np.array_equal(row, episode.observations[:2])
    assert all(len(windows) == 4 for windows, _ in planner.calls)


def test_plans_are_carried_out_whole():
    planner = StraightPlanner((0.9, 0.0), count=8)
    (episode,) = roll_out(planner, [TwoWays()], seed=0, episodes=[0])
    assert (episode.success, episode.ending) == (False, "hit the obstacle")
    assert planner.calls == -(-episode.steps // 8)


def test_time_runs_out():
    planner = StraightPlanner((-0.9, 0.0), count=8)
    (episode,) = roll_out(planner, [TwoWays()], seed=0, episodes=[0], max_steps=11, draw_every=5)
    assert (episode.success, episode.ending, episode.steps) == (False, OUT_OF_TIME, 11)
    assert len(episode.pictures) == 4  # of the beginning, of steps 5 and 10, of the end


def test_an_episode_ends_when_the_environment_does():
    planner = StraightPlanner((-0.9, 0.0), count=8)
    (episode,) = roll_out(planner, [TwoWays()], seed=0, episodes=[0], max_steps=10**6)
    assert (episode.ending, episode.steps) == (OUT_OF_TIME, TwoWays().max_steps)


def test_purposes_and_seeds_have_beginnings_of_their_own():
    found = [
        seed
        for purpose in (DEMONSTRATIONS, ROLLOUTS, NOISE)
        for run_seed in (0, 1)
        for seed in episode_seeds(purpose, run_seed, 50)
    ]
    assert len(set(found)) == len(found)
    assert episode_seeds(ROLLOUTS, 1, 3) == episode_seeds(ROLLOUTS, 1, 50)[:3]


def test_policies_that_do_not_fit():
    planner = StraightPlanner((0.0, 0.0))
    planner.sizes = PolicySizes(2, 4)
    with pytest.raises(UserError, match="actions of 4 numbers, the environment of 2"):
        roll_out(planner, [TwoWays()], seed=0, episodes=[0])
    with pytest.raises(UserError, match="not finite"):
        roll_out(StraightPlanner((np.nan, 0.0)), [TwoWays()], seed=0, episodes=[0])
