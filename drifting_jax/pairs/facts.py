"""What a run of pairs keeps of its data: shapes, and the scaling of the conditions."""

from typing import Any, NamedTuple

import numpy as np

from drifting_jax.errors import UserError
from drifting_jax.pairs.data import Pairs
from drifting_jax.steps.scaling import LEAST_RANGE, Scaling, scaling_of


class PairShapes(NamedTuple):
    """Shapes of a condition and of an image (h, w, c), without the axis of the pairs."""

    condition: tuple[int, ...]
    image: tuple[int, int, int]


class PairFacts(NamedTuple):
    """What sampling needs of the pairs that a run trains on.

    Attributes:
      shapes: of a condition and of an image.
      makes_bytes: whether the images are uint8.
      scaling: of the conditions: the range of each entry of their last axis becomes [-1, 1].
    """

    shapes: PairShapes
    makes_bytes: bool
    scaling: Scaling

    def record(self) -> dict[str, Any]:
        """What JSON keeps of them, exactly."""
        return {
            "condition": list(self.shapes.condition),
            "image": list(self.shapes.image),
            "makes_bytes": self.makes_bytes,
            "scaling": self.scaling.record(),
        }

    @classmethod
    def from_record(cls, record: Any, origin: object) -> "PairFacts":
        """The inverse of `record`.

        Raises:
          UserError: it is no such record.
        """
        wrong = UserError(f"{origin} does not hold what a run keeps of its pairs")
        try:
            condition, image = (tuple(record[name]) for name in ("condition", "image"))
            makes_bytes, of_scaling = record["makes_bytes"], record["scaling"]
        except (KeyError, TypeError):
            raise wrong from None
        sizes = (*condition, *image)
        fits = all(type(x) is int and 0 < x < 2**31 for x in sizes) and len(image) == 3
        scaling = Scaling.from_record(of_scaling, origin)
        if not fits or type(makes_bytes) is not bool or scaling.centre.shape != condition[-1:]:
            raise wrong
        return cls(PairShapes(condition, image), makes_bytes, scaling)


def facts_of(pairs: Pairs) -> PairFacts:
    """Returns the facts of pairs."""
    c = pairs.conditions
    height, width, channels = pairs.images.shape[1:]
    return PairFacts(
        shapes=PairShapes(c.shape[1:], (height, width, channels)),
        makes_bytes=pairs.images.dtype == "uint8",
        scaling=scaling_of(c.reshape(-1, c.shape[-1])),
    )


def frozen_line(facts: PairFacts, pairs: Pairs) -> str | None:
    """Returns a line for a person about entries whose range is too small to be scaled, or None.

    Args:
      facts: of these pairs.
      pairs: that a run trains on.
    """
    ranges = np.ptp(pairs.conditions.reshape(-1, len(facts.scaling.centre)), axis=0)
    tiny = np.flatnonzero((np.asarray(facts.scaling.half_range) == 0) & (ranges > 0))
    if not len(tiny):
        return None
    return (
        f"warning: {len(tiny)} of the {len(ranges)} entries of the last axis of condition have a "
        f"range below {LEAST_RANGE:g}, first entry {tiny[0]} (range {ranges[tiny[0]]:.2g}), and "
        "are only centred: the network hardly sees them; write them in a smaller unit if they "
        "matter"
    )
