"""Push-T: a disc pushes a block of the shape of a T onto its place (the package gym-pusht).

An observation [5] is the position of the disc, the position of the block and its angle. An action
[2] is where the disc is to move. Positions are from 0 to 512. The task counts as solved when the
block covers more than 95% of its place. There is no expert: the demonstrations are yours.
"""

import os
import warnings
from typing import Any

import numpy as np

from drifting_jax.control.environments.environment import Expert, Step
from drifting_jax.errors import UserError

_ARENA = 512.0


class PushT:
    """The task.

    Raises:
      UserError: gym-pusht is not installed.
    """

    observation_size = 5
    action_size = 2
    max_steps = 300
    steps_after_success = 0

    def __init__(self) -> None:
        self._environment: Any = _make()

    def reset(self, seed: int) -> np.ndarray:
        """Begins the episode of a seed and returns its first observation [5] float32."""
        observation, _ = self._environment.reset(seed=seed)
        return observation.astype(np.float32)

    def step(self, action: np.ndarray) -> Step:
        """Carries out an action [2], cut to the arena."""
        target = np.clip(np.asarray(action, np.float64), 0, _ARENA)
        observation, _, success, _, _ = self._environment.step(target)
        success = bool(success)
        return Step(observation.astype(np.float32), success, success, "solved" if success else "")

    def draw(self) -> np.ndarray:
        """Returns a picture [160, 160, 3] uint8."""
        return np.asarray(self._environment.render(), np.uint8)

    def expert(self, seed: int) -> Expert:
        """Raises UserError: there is none."""
        raise UserError(
            "push_t has no expert: train on demonstrations of your own, as docs/control.md says"
        )


def _make() -> Any:
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    try:
        with warnings.catch_warnings():  # of the libraries below it, when they are imported
            warnings.simplefilter("ignore")
            from gym_pusht.envs import PushTEnv
    except ImportError as error:
        raise UserError(
            f"push_t needs the package {error.name}: pip install -e '.[push_t]'"
        ) from None
    return PushTEnv(
        obs_type="state",
        render_mode="rgb_array",
        observation_width=160,
        observation_height=160,
        visualization_width=160,
        visualization_height=160,
    )
