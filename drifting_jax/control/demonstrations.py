"""Demonstrations of an environment's expert."""

import itertools
from collections.abc import Callable

import numpy as np

from drifting_jax.control.environments.environment import DEMONSTRATIONS, Environment, episode_seeds
from drifting_jax.errors import UserError
from drifting_jax.policy.demonstrations import Demonstrations

_MOST_FAILURES = 10  # for each demonstration that is wanted


def collect(
    environment: Environment,
    *,
    episodes: int,
    seed: int,
    report: Callable[[int], object] = lambda count: None,
) -> tuple[Demonstrations, int]:
    """Returns the first `episodes` successes of the expert, and how many episodes failed.

    Args:
      environment: whose expert acts.
      episodes: demonstrations to return.
      seed: of the episodes.
      report: is called with 1 after each demonstration.

    Raises:
      UserError: the environment has no expert, or it fails in more than 10 of 11 episodes.
    """
    seeds = episode_seeds(DEMONSTRATIONS, seed, episodes * (1 + _MOST_FAILURES))
    found: list[tuple[np.ndarray, np.ndarray]] = []
    failures = 0
    for episode_seed in seeds:
        demonstration = _demonstrate(environment, episode_seed)
        if demonstration is None:
            failures += 1
            continue
        found.append(demonstration)
        report(1)
        if len(found) == episodes:
            break
    else:
        raise UserError(
            f"the expert solved {len(found)} of {len(seeds)} episodes; expected {episodes}"
        )
    ends = np.array(list(itertools.accumulate(len(actions) for _, actions in found)), np.int64)
    observations, actions = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return Demonstrations(observations, actions, ends), failures


def _demonstrate(environment: Environment, seed: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Observations [t, d_o] and actions [t, d_a] of an episode; None if it fails."""
    observation = environment.reset(seed)
    act = environment.expert(seed)
    observations: list[np.ndarray] = []
    actions: list[np.ndarray] = []
    end = environment.max_steps  # after this many actions
    succeeded = False
    while len(actions) < end:
        action = act(observation)
        observations.append(observation)
        actions.append(action)
        step = environment.step(action)
        if step.success and not succeeded:
            succeeded = True
            end = min(end, len(actions) + environment.steps_after_success)
        elif step.ended and not succeeded:
            break
        observation = step.observation
    return (np.stack(observations), np.stack(actions)) if succeeded else None
