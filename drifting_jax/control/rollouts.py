"""Rolls a policy out: it plans from the last observations, acts on the plan, and plans again."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from drifting_jax.control.environments.environment import (
    ROLLOUTS,
    Environment,
    Step,
    episode_seeds,
)
from drifting_jax.errors import UserError
from drifting_jax.policy.policy import Policy
from drifting_jax.policy.program import PolicySizes
from drifting_jax.policy.windows import Horizons
from drifting_jax.steps.scaling import Outside, far_outside

OUT_OF_TIME = "out of time"
_PLANS = 1024  # more than an episode has


class Planner(Protocol):
    """What a rollout needs of a policy; `drifting_jax.policy.policy.Policy` is one.

    Attributes:
      horizons: how many observations it sees.
      sizes: d_o and d_a.
    """

    @property
    def horizons(self) -> Horizons: ...
    @property
    def sizes(self) -> PolicySizes: ...

    def act(self, observations: np.ndarray, *, seed: int, indices: np.ndarray) -> np.ndarray:
        """Returns the actions [n, k, d_a] to carry out next.

        Args:
          observations: [n, h, d_o] float32, oldest first.
          seed: of the noise.
          indices: [n]; row i depends on observations[i], seed and indices[i] alone.
        """


@dataclasses.dataclass
class Episode:
    """One rollout.

    Attributes:
      index: which of the seed's episodes.
      success: whether the task was solved.
      ending: how it ended, in a few words; see `Step`.
      observations: [t+1, d_o] float32, of t actions.
      pictures: [h, w, 3] uint8 each; empty unless they were asked for.
    """

    index: int
    success: bool
    ending: str
    observations: np.ndarray
    pictures: list[np.ndarray]

    @property
    def steps(self) -> int:
        """The number of actions."""
        return len(self.observations) - 1


@dataclasses.dataclass
class _Running:
    """An episode that goes on in an environment of its own."""

    index: int
    environment: Environment
    observations: list[np.ndarray]
    pictures: list[np.ndarray]
    plans: int = 0

    def window(self, horizon: int) -> np.ndarray:
        """The last observations [h, d_o]; before the first one there are copies of it."""
        last = self.observations[-horizon:]
        return np.stack([last[0]] * (horizon - len(last)) + last)

    def carry_out(self, actions: np.ndarray, *, max_steps: int, draw_every: int) -> Episode | None:
        """Acts; returns the episode if it ended."""
        for action in actions:
            step = self.environment.step(action)
            self.observations.append(step.observation)
            count = len(self.observations) - 1
            if count >= max_steps and not step.ended:
                step = Step(step.observation, False, True, OUT_OF_TIME)
            if draw_every and (step.ended or count % draw_every == 0):
                self.pictures.append(self.environment.draw())
            if step.ended:
                found = np.stack(self.observations)
                return Episode(self.index, step.success, step.ending, found, self.pictures)
        return None


def roll_out(
    planner: Planner,
    environments: Sequence[Environment],
    *,
    seed: int,
    episodes: Sequence[int],
    max_steps: int = 0,
    draw_every: int = 0,
) -> list[Episode]:
    """Rolls episodes of a seed out, as many at once as there are environments.

    Each plan of all running episodes is one call of the planner, always with as many rows as there
    are environments. An episode depends on planner, environment, seed and its index alone.

    Args:
      planner: what acts.
      environments: of one task.
      seed: of the beginnings of the episodes and of the noise.
      episodes: their indices.
      max_steps: actions after which an episode ends; 0: what the environment says.
      draw_every: steps from one picture to the next; 0 for none.

    Returns:
      The episodes in the given order.

    Raises:
      UserError: the planner does not fit the environment, or gives actions that are not finite.
    """
    check_fit(planner, environments[0])
    seeds = episode_seeds(ROLLOUTS, seed, max(episodes, default=-1) + 1)
    waiting: Iterator[int] = iter(episodes)
    idle = list(environments)
    running: list[_Running] = []
    found: dict[int, Episode] = {}
    while len(found) < len(episodes):
        while idle and (index := next(waiting, None)) is not None:
            environment = idle.pop(0)
            first = environment.reset(seeds[index])
            pictures = [environment.draw()] if draw_every else []
            running.append(_Running(index, environment, [first], pictures))
        actions = _plan(planner, running, rows=len(environments), seed=seed)
        longest = environments[0].max_steps
        limit = min(max_steps or longest, longest)
        for one, row in zip(list(running), actions, strict=True):
            ended = one.carry_out(row, max_steps=limit, draw_every=draw_every)
            if ended is not None:
                found[one.index] = ended
                running.remove(one)
                idle.append(one.environment)
    return [found[index] for index in episodes]


def check_fit(planner: Planner, environment: Environment) -> None:
    """Raises UserError unless a planner has the sizes of an environment."""
    sizes = [
        ("observations", planner.sizes.observation, environment.observation_size),
        ("actions", planner.sizes.action, environment.action_size),
    ]
    for what, of_planner, of_environment in sizes:
        if of_planner != of_environment:
            raise UserError(
                f"the policy has {what} of {of_planner} numbers, the environment of "
                f"{of_environment}: it has learned from demonstrations of another one"
            )


def first_outside(policy: Policy, environment: Environment, seeds: Sequence[int]) -> Outside | None:
    """Returns what of the first observations of some seeds is far outside of the demonstrations.

    Args:
      policy: with the range of its demonstrations.
      environment: that fits it; each seed's first episode is begun.
      seeds: of rollouts.
    """
    firsts = [environment.reset(episode_seeds(ROLLOUTS, seed, 1)[0]) for seed in seeds]
    return far_outside(policy.scalings.observation, np.stack(firsts))


def _plan(planner: Planner, running: Sequence[_Running], *, rows: int, seed: int) -> np.ndarray:
    """The next actions [n, k, d_a] of the running episodes."""
    windows = np.stack([one.window(planner.horizons.observation) for one in running])
    indices = np.array([one.index * _PLANS + one.plans for one in running])
    for one in running:
        one.plans += 1
    # Copies of the first row fill up the batch, so that a network is compiled once.
    missing = [(0, rows - len(running))]
    windows = np.pad(windows, (*missing, (0, 0), (0, 0)), mode="edge")
    indices = np.pad(indices, missing, mode="edge")
    actions = np.asarray(planner.act(windows, seed=seed, indices=indices))[: len(running)]
    if not np.all(np.isfinite(actions)):
        raise UserError("the policy gave actions that are not finite")
    return actions


def outcome(episode: Episode) -> dict[str, Any]:
    """The entry of an episode in a JSON file."""
    return {
        "episode": episode.index,
        "success": episode.success,
        "ending": episode.ending,
        "steps": episode.steps,
    }
