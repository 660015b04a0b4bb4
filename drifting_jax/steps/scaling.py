"""Scaling of conditions, observations and actions to [-1, 1], as Diffusion Policy has it."""

from typing import Any, NamedTuple

import flax.struct
import jax
import numpy as np

from drifting_jax.errors import UserError

FAR = 2.0  # beyond it, in scaled values, an input is far outside of the training range
LEAST_RANGE = 1e-4  # below it a dimension counts as constant, and is only centred
_PARTS = ("centre", "half_range")


@flax.struct.dataclass
class Scaling:
    """An affine map of each dimension: its range in the data becomes [-1, 1].

    Attributes:
      centre: [d] float32, what becomes 0.
      half_range: [d] float32, what becomes 1, from the centre on; 0 for a constant dimension, whose
        unit stays, and which `unscaled` sets to its constant.
    """

    centre: jax.Array | np.ndarray
    half_range: jax.Array | np.ndarray

    def scaled(self, values: Any) -> Any:
        """[..., d] in the units of the data -> the same in [-1, 1]."""
        shape = (1,) * (values.ndim - 1) + (-1,)
        half = self.half_range.reshape(shape)
        return (values - self.centre.reshape(shape)) / (half + (half == 0))

    def unscaled(self, values: Any) -> Any:
        """The inverse of `scaled`, within the data."""
        shape = (1,) * (values.ndim - 1) + (-1,)
        return values * self.half_range.reshape(shape) + self.centre.reshape(shape)

    def record(self) -> dict[str, list[float]]:
        """What JSON keeps of it, exactly."""
        return {part: [float(x) for x in getattr(self, part)] for part in _PARTS}

    @classmethod
    def from_record(cls, record: Any, origin: object) -> "Scaling":
        """The inverse of `record`.

        Raises:
          UserError: it is no such record.
        """
        wrong = UserError(f"{origin} does not hold the scaling of a run")
        try:
            found = cls(*(np.asarray(record[part], np.float32) for part in _PARTS))
        except (KeyError, TypeError, ValueError, OverflowError):
            raise wrong from None
        same = found.centre.shape == found.half_range.shape
        finite = all(np.isfinite(part).all() for part in (found.centre, found.half_range))
        if not (same and finite and found.centre.ndim == 1 and np.all(found.half_range >= 0)):
            raise wrong
        return found


def scaling_of(values: np.ndarray, covering: Scaling | None = None) -> Scaling:
    """Returns the scaling of values [T, d].

    With another scaling to cover, a dimension whose values lie within that one's range, up to
    rounding, keeps it, and the range of any other includes it.
    """
    low, high = values.min(axis=0), values.max(axis=0)
    if covering is not None:
        kept = [np.asarray(part, np.float32) for part in (covering.centre, covering.half_range)]
        centre, reach = (part.astype(np.float64) for part in kept)
        rounding = np.finfo(np.float32).eps * np.abs(centre) + 1e-6 * reach  # of both
        inside = (low >= centre - reach - rounding) & (high <= centre + reach + rounding)
        wider = scaling_of(np.stack([low, high, centre - reach, centre + reach]))
        return Scaling(
            centre=np.where(inside, kept[0], wider.centre),
            half_range=np.where(inside, kept[1], wider.half_range),
        )
    half = (high.astype(np.float64) - low) / 2
    constant = 2 * half < LEAST_RANGE
    return Scaling(
        centre=(low + half).astype(np.float32),
        half_range=np.where(constant, 0, half).astype(np.float32),
    )


class Outside(NamedTuple):
    """The input that lies farthest outside of the range that a scaling was made of.

    Attributes:
      rows: how many rows lie far outside in a dimension.
      dimension: that of the farthest value.
      value: that value, in the units of the data.
      low, high: the range of that dimension.
    """

    rows: int
    dimension: int
    value: float
    low: float
    high: float

    @property
    def words(self) -> str:
        """What a person is told of it."""
        return (
            f"far outside of the training range: {self.value:.4g} in dimension {self.dimension}, "
            f"where training had {self.low:.4g} to {self.high:.4g}"
        )


def far_outside(scaling: Scaling, values: np.ndarray) -> Outside | None:
    """Returns what of values [n, ..., d] lies far outside of the range of a scaling, or None.

    Far is beyond `FAR` after scaling: by more than half of the range's width. A dimension that was
    constant keeps its unit, so there it is by more than `FAR`.
    """
    if not values.size:
        return None
    d = len(scaling.centre)
    reach = np.abs(scaling.scaled(np.asarray(values, np.float32))).reshape(len(values), -1, d)
    if not (reach > FAR).any():
        return None
    row, place, dimension = np.unravel_index(np.nanargmax(reach), reach.shape)
    centre, half = (float(part[dimension]) for part in (scaling.centre, scaling.half_range))
    value = np.asarray(values, np.float32).reshape(reach.shape)[row, place, dimension]
    rows = int((reach > FAR).any(axis=(1, 2)).sum())
    ends = (end if abs(end) > 1e-6 * half else 0.0 for end in (centre - half, centre + half))
    return Outside(rows, int(dimension), float(value), *ends)
