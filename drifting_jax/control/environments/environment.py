"""What every environment offers, and the seeds of its episodes."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np

# An observation [d_o] -> the action [d_a] of a demonstrator.
Expert = Callable[[np.ndarray], np.ndarray]

# What a seed is for. Demonstrations and rollouts of one seed begin in different situations.
DEMONSTRATIONS, ROLLOUTS, NOISE = 0, 1, 2


class Step(NamedTuple):
    """What an action led to.

    Attributes:
      observation: [d_o] float32.
      success: whether the task is solved.
      ended: whether the episode is over; a success ends it.
      ending: in a few words, how it ended, such as "above"; empty while it goes on.
    """

    observation: np.ndarray
    success: bool
    ended: bool
    ending: str


class Environment(Protocol):
    """A task with vectors as observations and actions.

    An episode depends on the seed of `reset` and the actions alone, not on earlier episodes.

    Attributes:
      observation_size: d_o.
      action_size: d_a.
      max_steps: actions after which a rollout ends without success.
      steps_after_success: that a demonstration goes on. Where success means to be within a distance
        of something, its first moment is only the edge, and a policy must learn to stay inside.
    """

    observation_size: int
    action_size: int
    max_steps: int
    steps_after_success: int

    def reset(self, seed: int) -> np.ndarray:
        """Begins the episode of a seed and returns its first observation [d_o] float32."""

    def step(self, action: np.ndarray) -> Step:
        """Carries out an action [d_a]."""

    def draw(self) -> np.ndarray:
        """Returns a picture [h, w, 3] uint8 of the present state."""

    def expert(self, seed: int) -> Expert:
        """Returns a demonstrator for the episode of `reset(seed)`.

        Raises:
          UserError: the environment has none.
        """


def episode_seeds(purpose: int, seed: int, count: int) -> list[int]:
    """Returns the seeds of `count` episodes; the first ones are the same for every count."""
    return [
        int(np.random.SeedSequence([purpose, seed, episode]).generate_state(1)[0])
        for episode in range(count)
    ]
