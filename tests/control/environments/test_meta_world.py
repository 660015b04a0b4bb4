"""Meta-World: experts solve their tasks, episodes depend on their seeds alone, pictures."""

import importlib.util

import numpy as np
import pytest

from drifting_jax.control.demonstrations import collect
from drifting_jax.control.environments.environment import DEMONSTRATIONS, episode_seeds
from drifting_jax.control.environments.table import open_environment
from drifting_jax.errors import UserError


@pytest.fixture(scope="module")
def reach():
    if importlib.util.find_spec("metaworld") is None:  # an import would be too early for MUJOCO_GL
        pytest.skip("Meta-World is not installed")
    return open_environment("metaworld:reach-v3")


def episode(environment, seed, count=12):
    """Observations of the first steps of an expert, and a later observation."""
    observations = [environment.reset(seed)]
    act = environment.expert(seed)
    for _ in range(count):
        observations.append(environment.step(act(observations[-1])).observation)
    return np.stack(observations)


def test_experts_solve_it(reach):
    found, failures = collect(reach, episodes=3, seed=0)
    assert failures == 0
    assert found.observations.shape[1] == 39 and found.actions.shape[1] == 4
    assert np.abs(found.actions).max() <= 1
    goals = found.observations[found.episode_starts, -3:]
    assert len(np.unique(goals, axis=0)) == 3  # each episode has its own
    lengths = []  # to the first success, when the same actions are carried out again
    seeds = episode_seeds(DEMONSTRATIONS, 0, 3)
    for seed, start, end in zip(seeds, found.episode_starts, found.episode_ends, strict=True):
        reach.reset(seed)
        successes = [reach.step(action).success for action in found.actions[start:end]]
        lengths.append(successes.index(True) + 1)
    assert np.diff(found.episode_ends, prepend=0).tolist() == [n + 20 for n in lengths]


def test_an_episode_depends_on_its_seed_alone(reach):
    first = episode(reach, 5)
    np.random.seed(1)
    assert not np.array_equal(episode(reach, 6), first)
    assert np.array_equal(episode(reach, 5), first)
    assert np.array_equal(episode(open_environment("metaworld:reach-v3"), 5), first)


def test_pictures_need_no_display(reach):
    reach.reset(0)
    try:
        picture = reach.draw()
    except UserError as error:
        pytest.skip(str(error))
    assert picture.shape == (180, 180, 3) and picture.dtype == np.uint8
    assert picture.std() > 10
    reach.step(np.zeros(4))
    assert np.abs(reach.draw().astype(float) - picture).mean() < 5  # the camera stays where it is


def test_tasks_that_do_not_exist(reach):
    with pytest.raises(UserError, match=r"no task 'reach'; it has assembly-v3, "):
        open_environment("metaworld:reach")
