"""What a policy is measured by: how its samples fit the actions of demonstrations."""

import jax
import jax.numpy as jnp
import numpy as np

from drifting_jax.policy.policy import Policy
from drifting_jax.policy.step import energy_score
from drifting_jax.policy.windows import WindowSource

METRICS = ("energy_score", "error", "nearest", "spread")


def measure(
    policy: Policy, source: WindowSource, *, conditions: int, samples: int, seed: int
) -> dict:
    """Returns metrics of the samples of some windows, spread evenly over the demonstrations.

    Distances are between whole chunks, in actions from -1 to 1, as the root mean square over all
    their entries. `energy_score` is `error` less half of `spread`, a proper score: lower is
    better, and it is least where the samples are distributed as the demonstrations are.

    Args:
      policy: that is measured.
      source: of the windows.
      conditions: how many windows, at most.
      samples: of each, at least 2.
      seed: of their noise.

    Returns:
      {"conditions", "energy_score", "error": mean distance of a sample to the demonstration,
      "nearest": that of the nearest sample, "spread": mean distance between samples}.
    """
    windows = source.spread(conditions)
    seen = policy.scalings.observation.unscaled(source.observation(windows))
    chunks = policy.predict(np.repeat(seen, samples, axis=0), seed=seed)
    found = policy.scalings.action.scaled(chunks).reshape(len(windows), samples, -1)
    target = source.action(windows).reshape(len(windows), -1)
    entries = target.shape[1] ** 0.5
    to_target = np.linalg.norm(found - target[:, None], axis=-1) / entries
    scores = jax.jit(energy_score)(jnp.asarray(found), jnp.asarray(target))
    score, error = float(jnp.mean(scores)) / entries, float(to_target.mean())
    return {
        "conditions": len(windows),
        "energy_score": score,
        "error": error,
        "nearest": float(to_target.min(axis=1).mean()),
        "spread": 2 * (error - score),
    }
