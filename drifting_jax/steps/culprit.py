"""Which drift was not finite: a number on the device, and its name on the host."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from drifting_jax.method.statistics import DriftingStatistics


def drift_culprit(statistics: Mapping[str, DriftingStatistics]) -> jax.Array:
    """Returns the [] int32 number of the first drift that is not finite.

    The drifts are counted by feature in sorted order, then by temperature. The number is one past
    the last if all drifts are finite.
    """
    drifts = jnp.stack([statistics[name].drift_mean_square for name in sorted(statistics)])
    bad = ~jnp.isfinite(drifts).reshape(-1)
    return jnp.where(jnp.any(bad), jnp.argmax(bad), bad.size).astype(jnp.int32)


def culprit_name(culprit: int, features: Sequence[str], drifts: Sequence[str]) -> str:
    """Returns what `drift_culprit` counted, in words: feature and temperature, or the gradient.

    Args:
      culprit: of `drift_culprit`.
      features: names, in any order.
      drifts: names of each feature's drifts, as `fields.table.drift_names` gives them.
    """
    feature, drift = divmod(culprit, len(drifts))
    if feature >= len(features):
        return "the gradient (every drift was finite)"
    return f"feature {sorted(features)[feature]} at temperature {drifts[drift]}"
