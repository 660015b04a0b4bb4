"""Planners for rollouts that need no network."""

import numpy as np

from drifting_jax.policy.program import PolicySizes
from drifting_jax.policy.windows import Horizons

PLANS = 1024  # a rollout's index is its episode times this, plus the number of plans before


class ExpertPlanner:
    """The experts of an environment's episodes as a policy that plans one action at a time.

    Attributes:
      calls: the observations and the indices that it was given, call by call.
    """

    horizons = Horizons(observation=2, prediction=2, action=1)

    def __init__(self, environment, seeds):
        self.sizes = PolicySizes(environment.observation_size, environment.action_size)
        self._experts = [environment.expert(seed) for seed in seeds]
        self.calls = []

    def act(self, observations, *, seed, indices):
        self.calls.append((observations.copy(), indices.copy()))
        actions, done = {}, []
        for window, index in zip(observations, indices, strict=True):
            if index not in actions:  # rows may be repeated to fill up the batch
                actions[index] = self._experts[index // PLANS](window[-1])
            done.append(actions[index])
        return np.stack(done)[:, None]


class StraightPlanner:
    """Plans k actions straight towards a point, and counts its calls."""

    horizons, sizes = Horizons(observation=2, prediction=16, action=8), PolicySizes(2, 2)

    def __init__(self, target, count=8):
        self.target, self.count, self.calls = np.asarray(target, np.float32), count, 0

    def act(self, observations, *, seed, indices):
        self.calls += 1
        return np.broadcast_to(self.target, (len(observations), self.count, 2))
