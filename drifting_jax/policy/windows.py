"""Windows over demonstrations: what a policy sees, and the actions that it is to predict."""

from typing import Any, NamedTuple

import numpy as np

from drifting_jax.data.in_memory import DecodedSource
from drifting_jax.data.neighbours import nearest_conditions
from drifting_jax.errors import UserError
from drifting_jax.policy.demonstrations import Demonstrations
from drifting_jax.policy.scaling import Scalings


class Horizons(NamedTuple):
    """Steps of a window.

    Attributes:
      observation: observations that the policy sees, the first ones of the window.
      prediction: actions that it predicts, those of the whole window.
      action: actions that are carried out, from the last observation on.
    """

    observation: int
    prediction: int
    action: int

    @property
    def executed(self) -> slice:
        """The part of a predicted chunk that is carried out."""
        return slice(self.observation - 1, self.observation - 1 + self.action)

    @property
    def shortest(self) -> int:
        """Steps of the shortest episode that has a window."""
        return max(1, self.prediction - self.observation - self.action + 2)

    def check(self) -> None:
        """Raises UserError if the observations or the actions that are carried out do not fit."""
        if self.executed.stop > self.prediction:
            raise UserError(
                "config.data.prediction_horizon must be at least observation_horizon - 1 + "
                f"action_horizon = {self.executed.stop}; found {self.prediction}"
            )


def window_rows(
    episode_starts: np.ndarray, episode_ends: np.ndarray, horizons: Horizons
) -> np.ndarray:
    """Returns the steps [n, prediction] int64 of all windows, in the order of the episodes.

    As in Diffusion Policy, a window may begin `observation - 1` steps before its episode and end
    `action - 1` steps after it. The first step is repeated before the episode, and the last one
    after it. An episode that is shorter than that has no window.
    """
    before, after = horizons.observation - 1, horizons.action - 1
    found = []
    for start, end in zip(episode_starts, episode_ends, strict=True):
        first = np.arange(start - before, end + after - horizons.prediction + 1)
        steps = first[:, None] + np.arange(horizons.prediction)[None]
        found.append(np.clip(steps, start, end - 1))
    return np.concatenate(found)


class WindowSource(DecodedSource):
    """The windows of demonstrations as records, scaled to [-1, 1].

    A record is {"condition": [h, d_o] float32, "target": [p, H, d_a] float32, "label": 0}. Its
    targets are the actions of the window itself and then of its `neighbours`, p - 1 windows of the
    nearest observations. If there are any, "distance" [p] float32 says how far these are.

    Attributes:
      rows: [n, H] steps of each window.
      actions: [T, d_a] scaled actions of all steps.
      too_short: the number of episodes that have no window.

    Raises:
      UserError: the horizons do not fit, every episode is too short for a window, or there are not
        so many windows.
    """

    image_dtype = np.dtype(np.float32)
    num_classes, class_names = 1, ["demonstrations"]

    def __init__(
        self,
        demonstrations: Demonstrations,
        horizons: Horizons,
        scalings: Scalings,
        *,
        neighbours: int = 0,
    ):
        horizons.check()
        self.rows = window_rows(
            demonstrations.episode_starts, demonstrations.episode_ends, horizons
        )
        lengths = np.diff(demonstrations.episode_ends, prepend=0)
        self.too_short = int(np.sum(lengths < horizons.shortest))
        if not len(self.rows):
            raise UserError(
                f"every episode is too short: the longest has {lengths.max()} steps, and the "
                f"horizons need {horizons.shortest}; lower config.data.prediction_horizon"
            )
        self.horizons, self.fingerprint = horizons, demonstrations.fingerprint
        self._observations = scalings.observation.scaled(demonstrations.observations)
        self.actions = scalings.action.scaled(demonstrations.actions)
        self.image_shape = (horizons.prediction, self.actions.shape[1])
        self.observation_shape = (horizons.observation, self._observations.shape[1])
        self._nearest, self._distance = np.arange(len(self.rows))[:, None], None
        if neighbours:
            conditions = self.observation(np.arange(len(self))).reshape(len(self), -1)
            self._nearest, self._distance = nearest_conditions(conditions, neighbours)

    @property
    def labels(self) -> np.ndarray:
        """[n] int32, all of one class."""
        return np.zeros(len(self), np.int32)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = {
            "condition": self.observation(index),
            "target": self.actions[self.rows[self._nearest[index]]],
            "label": np.int32(0),
        }
        return record if self._distance is None else record | {"distance": self._distance[index]}

    def observation(self, index: Any) -> np.ndarray:
        """[..., h, d_o] scaled observations of a window, or of several."""
        return self._observations[self.rows[index, ..., : self.horizons.observation]]

    def action(self, index: Any) -> np.ndarray:
        """[..., H, d_a] scaled actions of a window, or of several."""
        return self.actions[self.rows[index]]

    def spread(self, count: int) -> np.ndarray:
        """Returns the numbers of windows that are spread evenly, at most `count`."""
        count = min(count, len(self))
        return ((np.arange(count) + 0.5) * len(self) / count).astype(np.int64)

    def name(self, index: int) -> str:
        """What a window is called in messages."""
        return f"window {index}"
