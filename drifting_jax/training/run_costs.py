"""Hours, energy and price of a whole run, from the time of one step of each of its stages."""

import dataclasses
import math
from collections.abc import Sequence

from drifting_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class StageTime:
    """How long a stage of a run takes.

    Attributes:
      name: such as "encoder".
      steps: of the stage.
      seconds: of a step.
    """

    name: str
    steps: int
    seconds: float

    @property
    def total(self) -> float:
        """Seconds of the whole stage."""
        return self.steps * self.seconds


@dataclasses.dataclass(frozen=True)
class RunCost:
    """What a run takes on all its devices together.

    Attributes:
      hours: from start to end.
      kilowatt_hours: upper bound of the devices' energy in that time; None if their power is
        not known.
      price: in the currency of the rate; None without a rate.
    """

    hours: float
    kilowatt_hours: float | None
    price: float | None


def run_cost(
    stages: Sequence[StageTime],
    *,
    devices: int,
    watts: float | None,
    price_per_hour: float | None,
) -> RunCost:
    """Returns what the stages of a run take, one after another.

    Args:
      stages: with the time of their steps.
      devices: number of them.
      watts: that one device draws at most; None if unknown.
      price_per_hour: of one device; None if unknown.
    """
    hours = sum(stage.total for stage in stages) / 3600
    return RunCost(
        hours=hours,
        kilowatt_hours=None if watts is None else devices * watts * hours / 1000,
        price=None if price_per_hour is None else devices * price_per_hour * hours,
    )


def check_price(price_per_hour: float | None) -> None:
    """Raises UserError for a price that is no number above 0."""
    if price_per_hour is not None and not (math.isfinite(price_per_hour) and price_per_hour > 0):
        raise UserError(
            "the price of a device for an hour must be a number above 0, such as 2.5; found "
            f"{price_per_hour:g}"
        )


def duration(seconds: float) -> str:
    """A time in the unit that suits it: "4.7 ms", "12.3 s", "3.5 min", "27.0 h"."""
    for unit, size in (("h", 3600), ("min", 60), ("s", 1)):
        if seconds >= size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds * 1e3:.1f} ms"
