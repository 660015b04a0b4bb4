"""Scaling of observations and actions to [-1, 1], as Diffusion Policy has it."""

from typing import Any, NamedTuple

import flax.struct
import jax
import numpy as np

from drifting_jax.errors import UserError

_LEAST_RANGE = 1e-4  # below it a dimension counts as constant, and is only centred
_SHOWN = 20  # dimensions, in a line


@flax.struct.dataclass
class Scaling:
    """An affine map of each dimension: its range in the demonstrations becomes [-1, 1].

    Attributes:
      centre: [d] float32, what becomes 0.
      half_range: [d] float32, what becomes 1, from the centre on; 0 for a constant dimension, whose
        unit stays, and which `unscaled` sets to its constant.
    """

    centre: jax.Array | np.ndarray
    half_range: jax.Array | np.ndarray

    def scaled(self, values: Any) -> Any:
        """[..., d] in the units of the environment -> the same in [-1, 1]."""
        shape = (1,) * (values.ndim - 1) + (-1,)
        half = self.half_range.reshape(shape)
        return (values - self.centre.reshape(shape)) / (half + (half == 0))

    def unscaled(self, values: Any) -> Any:
        """The inverse of `scaled`, within the demonstrations."""
        shape = (1,) * (values.ndim - 1) + (-1,)
        return values * self.half_range.reshape(shape) + self.centre.reshape(shape)


def scaling_of(values: np.ndarray, covering: Scaling | None = None) -> Scaling:
    """Returns the scaling of values [T, d].

    With another scaling to cover, a dimension whose values lie within that one's range keeps it,
    and the range of any other includes it.
    """
    low, high = values.min(axis=0), values.max(axis=0)
    if covering is not None:
        centre, reach = np.asarray(covering.centre), np.asarray(covering.half_range)
        inside = (low >= centre - reach) & (high <= centre + reach)
        wider = scaling_of(np.stack([low, high, centre - reach, centre + reach]))
        return Scaling(
            centre=np.where(inside, centre, wider.centre),
            half_range=np.where(inside, reach, wider.half_range),
        )
    half = (high.astype(np.float64) - low) / 2
    constant = 2 * half < _LEAST_RANGE
    return Scaling(
        centre=(low + half).astype(np.float32),
        half_range=np.where(constant, 0, half).astype(np.float32),
    )


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
                f"{_LEAST_RANGE:g} in the demonstrations and are not scaled: {what}; write them in "
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
        return {
            name: {part: [float(x) for x in getattr(scaling, part)] for part in _PARTS}
            for name, scaling in self._asdict().items()
        }

    @classmethod
    def from_record(cls, record: Any, origin: object) -> "Scalings":
        """The inverse of `record`.

        Raises:
          UserError: it is no such record.
        """
        try:
            found = [
                Scaling(*(np.asarray(record[name][part], np.float32) for part in _PARTS))
                for name in cls._fields
            ]
        except (KeyError, TypeError, ValueError, OverflowError):
            raise UserError(f"{origin} does not hold the scaling of a policy") from None
        for scaling in found:
            same = scaling.centre.shape == scaling.half_range.shape
            finite = all(np.isfinite(part).all() for part in (scaling.centre, scaling.half_range))
            fits = same and finite and scaling.centre.ndim == 1
            if not fits or not np.all(scaling.half_range >= 0):
                raise UserError(f"{origin} does not hold the scaling of a policy")
        return cls(*found)


_PARTS = ("centre", "half_range")
