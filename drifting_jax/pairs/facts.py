"""What a run of pairs keeps of its data: shapes, and the scaling of the conditions."""

from typing import Any, NamedTuple

from drifting_jax.errors import UserError
from drifting_jax.pairs.data import Pairs
from drifting_jax.steps.scaling import Scaling, scaling_of


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
