"""The training state: parameters, optimizer, moving averages, and the count of skipped steps."""

from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from drifting_jax.steps import power_averages

PyTree = Any

NO_CULPRIT = -1


@flax.struct.dataclass
class TrainState:
    """Everything a step changes besides the queue.

    Attributes:
      step: [] int32, steps taken, skipped ones included.
      params: float32 parameters.
      opt_state: state of the optax chain.
      ema: {name of the decay or the width: moving average of the parameters}.
      skipped: [] int32, steps not applied because the loss or its gradient was not finite.
      skipped_in_a_row: [] int32, how many of the latest steps were skipped.
      culprit: [] int32, the quantity of the latest skipped step that was not finite, as the step
        function numbers it; -1 for none.
    """

    step: jax.Array
    params: PyTree
    opt_state: PyTree
    ema: dict[str, PyTree]
    skipped: jax.Array
    skipped_in_a_row: jax.Array
    culprit: jax.Array


def ema_name(decay: float) -> str:
    """Returns the key of a decay in `TrainState.ema`: 0.999 -> "0.999"."""
    return f"{decay:g}"


def width_name(width: float) -> str:
    """Returns the key of a relative width in `TrainState.ema`: 0.05 -> "width_0.05"."""
    return f"width_{width:g}"


def create_state(
    params: PyTree,
    optimizer: optax.GradientTransformation,
    *,
    ema_decays: Sequence[float],
    ema_widths: Sequence[float] = (),
) -> TrainState:
    """Returns the state before the first step; every average starts at the parameters."""
    names = [*map(ema_name, ema_decays), *map(width_name, ema_widths)]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        # Copies, because the step donates the state and a buffer can be donated only once.
        ema={name: jax.tree.map(jnp.copy, params) for name in names},
        skipped=jnp.zeros((), jnp.int32),
        skipped_in_a_row=jnp.zeros((), jnp.int32),
        culprit=jnp.full((), NO_CULPRIT, jnp.int32),
    )


def update_ema(average: PyTree, params: PyTree, decay: float) -> PyTree:
    """Returns decay·average + (1 - decay)·params, without warm-up."""
    return jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, average, params)


def apply_gradients(
    state: TrainState,
    gradients: PyTree,
    optimizer: optax.GradientTransformation,
    *,
    ema_decays: Sequence[float],
    ema_widths: Sequence[float] = (),
    finite: jax.Array,
    culprit: jax.Array,
) -> TrainState:
    """Returns the state after one optimizer step, or after a skipped step.

    Args:
      state: before the step.
      gradients: of the parameters.
      optimizer: of the parameters.
      ema_decays: one moving average for each.
      ema_widths: one power-function average for each.
      finite: [] bool; where it is false, parameters, optimizer and averages stay as they are and
        the step is counted as skipped.
      culprit: [] int32, stored for a skipped step.
    """

    def keep_if_finite(new: PyTree, old: PyTree) -> PyTree:
        return jax.tree.map(lambda n, o: jax.lax.select(finite, n, o), new, old)

    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = keep_if_finite(optax.apply_updates(state.params, updates), state.params)
    ema = {
        ema_name(decay): keep_if_finite(
            update_ema(state.ema[ema_name(decay)], params, decay), state.ema[ema_name(decay)]
        )
        for decay in ema_decays
    }
    for width in ema_widths:
        before, updates = state.ema[width_name(width)], state.step - state.skipped + 1
        after = power_averages.update_average(before, params, width=width, updates=updates)
        ema[width_name(width)] = keep_if_finite(after, before)
    skip = jnp.where(finite, 0, 1).astype(jnp.int32)
    return TrainState(
        step=state.step + 1,
        params=params,
        opt_state=keep_if_finite(opt_state, state.opt_state),
        ema=ema,
        skipped=state.skipped + skip,
        skipped_in_a_row=(state.skipped_in_a_row + 1) * skip,
        culprit=jnp.where(finite, state.culprit, culprit).astype(jnp.int32),
    )
