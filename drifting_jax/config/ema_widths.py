"""The check of `train.ema_widths`: relative widths of power-function averages."""

from typing import Any

from drifting_jax.errors import UserError

_SMALLEST, _LARGEST = 0.01, 0.28  # a profile that is wider than 0.28 is nearly uniform


def check_ema_widths(name: str, widths: tuple[Any, ...]) -> None:
    """Checks that widths are different numbers from 0.01 to 0.28.

    Args:
      name: the field, for messages.
      widths: such as (0.05, 0.1).

    Raises:
      UserError: they are not.
    """
    numbers = all(isinstance(width, float) and _SMALLEST <= width <= _LARGEST for width in widths)
    if not numbers or len(set(widths)) < len(widths):
        raise UserError(
            f"config.{name} must hold different widths from {_SMALLEST} to {_LARGEST}, such as "
            f"(0.05, 0.1); found {widths!r}"
        )
