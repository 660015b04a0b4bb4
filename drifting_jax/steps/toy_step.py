"""The training step of the two-dimensional toy (5.1): the drifting loss on raw coordinates."""

import dataclasses
from collections.abc import Mapping

import flax.struct
import jax
import jax.numpy as jnp
import optax

from drifting_jax.method import losses
from drifting_jax.method.fields.options import DriftOptions
from drifting_jax.method.fields.table import field_named, negatives_of
from drifting_jax.models.calls import apply
from drifting_jax.models.mlp import MLP
from drifting_jax.steps.culprit import drift_culprit
from drifting_jax.steps.state import TrainState, apply_gradients

_FRESH, _FIELD = 1, 2  # numbers of a step's further keys


@dataclasses.dataclass(frozen=True)
class ToyStepConfig:
    """Sizes and settings of a toy's step.

    Attributes:
      generated: g, generated points of a step.
      noise_features: width of the noise that becomes a point.
      drift: the field and its temperatures.
      num_steps: steps of the run, over which temperatures may be annealed.
      ema_decays: one moving average of the parameters for each.
    """

    generated: int
    noise_features: int
    drift: DriftOptions
    num_steps: int
    ema_decays: tuple[float, ...]


@flax.struct.dataclass
class ToyMetrics:
    """What a toy's step reports.

    Attributes:
      updates: [] int32, updates before this step; skipped steps do not count.
      loss: [] nearly constant by construction.
      gradient_norm: [] before the clip.
      statistics: of the one feature, the points themselves.
    """

    updates: jax.Array
    loss: jax.Array
    gradient_norm: jax.Array
    statistics: losses.DriftingStatistics


def toy_step(
    state: TrainState,
    batch: Mapping[str, jax.Array],
    key: jax.Array,
    *,
    model: MLP,
    optimizer: optax.GradientTransformation,
    settings: ToyStepConfig,
) -> tuple[TrainState, ToyMetrics]:
    """Draws noise, generates points, drifts them towards the real points, and updates.

    Args:
      state: donated by the caller's jit.
      batch: {"image": [p, 2]} real points.
      key: the root key of this stage; the step folds in its own number.
      model: from noise [g, noise_features] to points [g, 2].
      optimizer: of the parameters.
      settings: see `ToyStepConfig`.
    """
    s = settings
    key = jax.random.fold_in(key, state.step)
    noise, other_noise = (
        jax.random.normal(k, (s.generated, s.noise_features))
        for k in (key, jax.random.fold_in(key, _FRESH))
    )
    positive = batch["image"][None, :, None, :]  # [1, p, 1, 2]

    def points(params, noise):
        return apply(model, params, noise)[None, :, None, :]  # [1, g, 1, 2]

    fresh = points(state.params, other_noise) if negatives_of(s.drift) == "fresh" else None

    def loss_function(params):
        return losses.drifting_loss(
            points(params, noise),
            positive,
            fresh=fresh,
            options=s.drift,
            key=jax.random.fold_in(key, _FIELD) if field_named(s.drift.field).draws else None,
            progress=state.step / s.num_steps if s.drift.annealed else None,
        )

    (loss, statistics), gradients = jax.value_and_grad(loss_function, has_aux=True)(state.params)
    norm = optax.tree.norm(gradients)
    metrics = ToyMetrics(state.step - state.skipped, loss, norm, statistics)
    state = apply_gradients(
        state,
        gradients,
        optimizer,
        ema_decays=s.ema_decays,
        finite=jnp.isfinite(loss) & jnp.isfinite(norm),
        culprit=drift_culprit({"points": statistics}),
    )
    return state, metrics
