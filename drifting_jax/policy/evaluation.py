"""What a policy is measured by: how its samples fit the actions of demonstrations."""

import numpy as np

from drifting_jax.evaluation.metrics.single_target import measure_samples
from drifting_jax.policy.policy import Policy
from drifting_jax.policy.windows import WindowSource


def measure(
    policy: Policy, source: WindowSource, *, conditions: int, samples: int, seed: int
) -> dict:
    """Returns `measure_samples` of some windows, spread evenly over the demonstrations.

    Distances are between whole chunks, in actions from -1 to 1.

    Args:
      policy: that is measured.
      source: of the windows.
      conditions: how many windows, at most.
      samples: of each, at least 2.
      seed: of their noise.
    """
    windows = source.spread(conditions)
    seen = policy.scalings.observation.unscaled(source.observation(windows))
    chunks = policy.predict(np.repeat(seen, samples, axis=0), seed=seed)
    found = policy.scalings.action.scaled(chunks).reshape(len(windows), samples, -1)
    return measure_samples(found, source.action(windows))
