"""The training step of the two-dimensional toy (5.1): the drifting loss on raw coordinates."""

import dataclasses
from collections.abc import Mapping

import flax.struct
import jax
import jax.numpy as jnp
import optax

from drifting_jax.method import losses
from drifting_jax.method.fields.options import DriftOptions
from drifting_jax.models.calls import apply
from drifting_jax.models.mlp import MLP
from drifting_jax.steps.culprit import drift_culprit
from drifting_jax.steps.state import TrainState, apply_gradients


@dataclasses.dataclass(frozen=True)
class ToyStepConfig:
    """Sizes and settings of a toy's step.

    Attributes:
      generated: g, generated points of a step.
      noise_features: width of the noise that becomes a point.
      drift: the field and its temperatures.
      ema_decays: one moving average of the parameters for each.
    """

    generated: int
    noise_features: int
    drift: DriftOptions
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
    noise = jax.random.normal(jax.random.fold_in(key, state.step), (s.generated, s.noise_features))
    positive = batch["image"][None, :, None, :]  # [1, p, 1, 2]

    def loss_function(params):
        points = apply(model, params, noise)
        generated = points[None, :, None, :]  # [1, g, 1, 2]
        return losses.drifting_loss(generated, positive, options=s.drift)

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
