"""The training step where a row is one condition with a single target: raw actions (5.3), images.

Parameters are {"network": …}, with a learned temperature {"network": …, "log_temperature": []}.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from drifting_jax.method.fields.options import DriftOptions
from drifting_jax.method.fields.table import field_named, negatives_of
from drifting_jax.method.single_target import (
    LEAST_TEMPERATURE,
    Moment,
    neighbour_weights,
    single_target_loss,
    temperature_loss,
)
from drifting_jax.method.statistics import DriftingStatistics
from drifting_jax.models.calls import apply
from drifting_jax.steps.culprit import drift_culprit
from drifting_jax.steps.state import TrainState, apply_gradients

PyTree = Any
_FRESH, _FIELD = 1, 2  # numbers of a step's further keys


@dataclasses.dataclass(frozen=True)
class SingleTargetStepConfig:
    """Sizes and settings of a step.

    Attributes:
      generated: g, samples of each condition.
      drift: the field and its temperatures.
      per_row: whether each row has its own scale S and its own norm of the drift.
      learns_temperature: whether the temperature is a parameter.
      neighbour_width: of the kernel that weighs further positives.
      num_steps: steps of the run, over which temperatures may be annealed.
      ema_decays: one moving average of the parameters for each.
    """

    generated: int
    drift: DriftOptions
    per_row: bool
    learns_temperature: bool
    neighbour_width: float
    num_steps: int
    ema_decays: tuple[float, ...]


@flax.struct.dataclass
class SingleTargetMetrics:
    """What a step reports.

    Attributes:
      updates: [] int32, updates before this step; skipped steps do not count.
      loss: [] nearly constant by construction.
      gradient_norm: [] before the clip.
      statistics: of the one feature, the targets' raw entries.
      energy_score: [] mean distance to the targets less half of that between samples of a row, as
        the root mean square over the entries of a target; it is least where the samples are
        distributed as the targets are.
      temperature: [] the learned one; None without.
    """

    updates: jax.Array
    loss: jax.Array
    gradient_norm: jax.Array
    statistics: DriftingStatistics
    energy_score: jax.Array
    temperature: jax.Array | None


def temperature_of(params: PyTree) -> jax.Array:
    """Returns the learned temperature [] of parameters."""
    return jnp.maximum(jnp.exp(params["log_temperature"]), LEAST_TEMPERATURE)


def single_target_step(
    state: TrainState,
    batch: Mapping[str, jax.Array],
    key: jax.Array,
    *,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    settings: SingleTargetStepConfig,
) -> tuple[TrainState, SingleTargetMetrics]:
    """Draws noise, generates samples of each condition, drifts them to its target, and updates.

    Args:
      state: donated by the caller's jit.
      batch: "condition" [c, ...]; "target" [c, p, ...], of the condition itself and of its
        neighbours; "distance" [c, p], of their conditions, unless p is 1. All are scaled.
      key: the root key of this stage; the step folds in its own number.
      model: (noise [c, g, ...], conditions [c, ...]) -> samples [c, g, ...].
      optimizer: of the parameters.
      settings: see `SingleTargetStepConfig`.
    """
    s = settings
    key = jax.random.fold_in(key, state.step)
    c, _, *of_target = batch["target"].shape
    noise, other_noise = (
        jax.random.normal(k, (c, s.generated, *of_target))
        for k in (key, jax.random.fold_in(key, _FRESH))
    )

    def samples(params: PyTree, noise: jax.Array) -> jax.Array:
        return _flat(apply(model, params["network"], noise, batch["condition"]))

    fresh = samples(state.params, other_noise) if negatives_of(s.drift) == "fresh" else None

    def loss_function(params: PyTree):
        moment = Moment(
            temperature=temperature_of(params) if s.learns_temperature else None,
            progress=state.step / s.num_steps if s.drift.annealed else None,
            key=jax.random.fold_in(key, _FIELD) if field_named(s.drift.field).draws else None,
        )
        return _losses(samples(params, noise), fresh, batch, moment, s)

    (_, found), gradients = jax.value_and_grad(loss_function, has_aux=True)(state.params)
    loss, statistics, score, temperature = found
    norm = optax.tree.norm(gradients)
    updates = state.step - state.skipped
    metrics = SingleTargetMetrics(updates, loss, norm, statistics, score, temperature)
    state = apply_gradients(
        state,
        gradients,
        optimizer,
        ema_decays=s.ema_decays,
        finite=jnp.isfinite(loss) & jnp.isfinite(norm),
        culprit=drift_culprit({"target": statistics}),
    )
    return state, metrics


def _losses(
    generated: jax.Array,
    fresh: jax.Array | None,
    batch: Mapping[str, jax.Array],
    moment: Moment,
    settings: SingleTargetStepConfig,
) -> tuple[jax.Array, tuple[jax.Array, DriftingStatistics, jax.Array, jax.Array | None]]:
    """The sum of all losses [], and what the metrics have of them."""
    s, positive, weight = settings, _flat(batch["target"]), None
    if positive.shape[1] > 1:
        weight = neighbour_weights(batch["distance"], s.neighbour_width)
    loss, statistics = single_target_loss(
        generated,
        positive,
        fresh,
        positive_weight=weight,
        options=s.drift,
        per_row=s.per_row,
        moment=moment,
    )
    total = loss
    if moment.temperature is not None:
        own = positive[:, :1]
        total += temperature_loss(generated, own, moment.temperature, options=s.drift)
    score = energy_score(generated[:, :, 0], positive[:, 0, 0]) / positive.shape[-1] ** 0.5
    return total, (loss, statistics, jnp.mean(score), moment.temperature)


def energy_score(samples: jax.Array, target: jax.Array) -> jax.Array:
    """Returns [c] the unbiased energy score of samples [c, g, d] of one target [c, d] each.

    It is mean |x - y| - ½·mean |x - x'| over different samples: a proper score, whose mean is
    least for samples of the targets' own distribution.
    """
    g = samples.shape[1]
    to_target = jnp.mean(jnp.linalg.norm(samples - target[:, None], axis=-1), axis=1)
    apart = samples[:, :, None] - samples[:, None]
    squared = jnp.sum(jnp.square(apart), axis=-1)
    between = jnp.sqrt(squared).sum(axis=(1, 2)) / max(g * (g - 1), 1)
    return to_target - 0.5 * between


def _flat(samples: jax.Array) -> jax.Array:
    """[c, n, ...] as one location with all entries for channels, [c, n, 1, d]."""
    return samples.reshape(*samples.shape[:2], 1, -1)
