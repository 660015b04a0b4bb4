"""How samples of conditions fit the single target that each condition comes with."""

import jax
import jax.numpy as jnp
import numpy as np

from drifting_jax.steps.single_target_step import energy_score

NAMES = ("energy_score", "error", "nearest", "spread")


def measure_samples(samples: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """Returns metrics of samples of conditions.

    Distances are between whole samples, as the root mean square over all their entries.
    `energy_score` is `error` less half of `spread`, a proper score: lower is better, and it is
    least where the samples are distributed as the targets are.

    Args:
      samples: [n, k, ...] float32, k of each condition, at least 2.
      targets: [n, ...] float32.

    Returns:
      {"conditions": n, "energy_score", "error": mean distance of a sample to its target, "nearest":
      that of the nearest sample, "spread": mean distance between samples}.
    """
    n, k = samples.shape[:2]
    found, target = samples.reshape(n, k, -1), targets.reshape(n, -1)
    entries = target.shape[1] ** 0.5
    to_target = np.linalg.norm(found - target[:, None], axis=-1) / entries
    scores = jax.jit(energy_score)(jnp.asarray(found), jnp.asarray(target))
    score, error = float(jnp.mean(scores)) / entries, float(to_target.mean())
    return {
        "conditions": n,
        "energy_score": score,
        "error": error,
        "nearest": float(to_target.min(axis=1).mean()),
        "spread": 2 * (error - score),
    }


def table(found: dict[str, dict[str, float]], title: str) -> str:
    """Returns `measure_samples` of some parts of the data, {name: metrics}, as plain text."""
    lines = [f"{title:<30}" + "".join(f"{name:>14}" for name in NAMES)]
    for part, values in found.items():
        cells = "".join(f"{values[name]:>14.4f}" for name in NAMES)
        lines.append(f"{part.replace('_', ' '):<30}{cells}")
    return "\n".join(lines)
