"""The scalings of a policy's observations and actions."""

from typing import Any, NamedTuple

import numpy as np

from drifting_jax.errors import UserError
from drifting_jax.steps.scaling import LEAST_RANGE, Scaling

_SHOWN = 20  # dimensions, in a line


def frozen_lines(scalings: "Scalings", observations: np.ndarray, actions: np.ndarray) -> list[str]:
    """Returns lines for a person about dimensions whose range is too small to be scaled.

    Args:
      scalings: of these values.
      observations: [T, d_o].
      actions: [T, d_a].
    """
    lines = []
    for name, scaling, values, what in (
        ("observations", scalings.observation, observations, "the policy hardly sees them"),
        ("actions", scalings.action, actions, "the policy always gives the middle of the range"),
    ):
        frozen = np.flatnonzero(np.asarray(scaling.half_range) == 0)
        ranges = np.ptp(values[:, frozen], axis=0)
        constant = [str(dimension) for dimension in frozen[ranges == 0]]
        if constant:
            lines.append(f"note: dimensions {_some(constant)} of the {name} are constant")
        tiny = [f"{i} (range {x:.2g})" for i, x in zip(frozen, ranges, strict=True) if x]
        if tiny:
            lines.append(
                f"warning: dimensions {_some(tiny)} of the {name} have a range below "
                f"{LEAST_RANGE:g} in the demonstrations and are not scaled: {what}; write them in "
                "a smaller unit if they matter"
            )
    return lines


def _some(words: list[str]) -> str:
    return ", ".join(words[:_SHOWN]) + ", …" * (len(words) > _SHOWN)


class Scalings(NamedTuple):
    """The scalings of a policy: its observations [d_o] and its actions [d_a]."""

    observation: Scaling
    action: Scaling

    def record(self) -> dict[str, dict[str, list[float]]]:
        """What JSON keeps of them, exactly."""
        return {name: scaling.record() for name, scaling in self._asdict().items()}

    @classmethod
    def from_record(cls, record: Any, origin: object) -> "Scalings":
        """The inverse of `record`.

        Raises:
          UserError: it is no such record.
        """
        if not isinstance(record, dict) or not set(cls._fields) <= set(record):
            raise UserError(f"{origin} does not hold the scaling of a policy")
        return cls(*(Scaling.from_record(record[name], origin) for name in cls._fields))
