"""The learning-rate schedule and the optimizer: gradient clip, then AdamW (Table 8)."""

import optax

_WARMUP_START = 1e-6
_COSINE_END = 1e-6  # share of the peak


def learning_rate_schedule(
    learning_rate: float,
    *,
    warmup_steps: int,
    num_steps: int = 0,
    schedule: str = "constant",
    end: float = 0.0,
) -> optax.Schedule:
    """Returns a linear warm-up from 1e-6, then a constant rate or a cosine.

    Args:
      learning_rate: the peak, reached at step `warmup_steps`.
      warmup_steps: steps of the warm-up; 0 for none.
      num_steps: steps of the whole run; only the cosine uses it.
      schedule: "constant", or "cosine" to `end` at `num_steps`.
      end: the last rate of a cosine; 0 for 1e-6 of the peak.

    Raises:
      ValueError: another schedule, or a cosine that ends before the warm-up does.
    """
    if schedule == "constant":
        after = optax.constant_schedule(learning_rate)
    elif schedule == "cosine":
        if num_steps <= warmup_steps:
            raise ValueError(
                f"a cosine schedule needs num_steps above warmup_steps; found {num_steps} and "
                f"{warmup_steps}"
            )
        share = end / learning_rate if end else _COSINE_END
        after = optax.cosine_decay_schedule(learning_rate, num_steps - warmup_steps, share)
    else:
        raise ValueError(f"schedule must be constant or cosine; found {schedule!r}")
    if not warmup_steps:
        return after
    warmup = optax.linear_schedule(_WARMUP_START, learning_rate, warmup_steps)
    return optax.join_schedules([warmup, after], [warmup_steps])


def make_optimizer(
    schedule: optax.Schedule,
    *,
    b1: float,
    b2: float,
    weight_decay: float,
    clip_norm: float,
    first_moment_dtype: str = "float32",
) -> optax.GradientTransformation:
    """Returns a clip by global norm (0: none), then AdamW with decay on every parameter.

    `first_moment_dtype` is the dtype in which the mean of the gradients is stored.
    """
    clip = optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()
    adamw = optax.adamw(
        schedule, b1=b1, b2=b2, weight_decay=weight_decay, mu_dtype=first_moment_dtype
    )
    return optax.chain(clip, adamw)
