"""Pictures of pairs: in each row a condition, where it is an image, its target, and samples."""

import jax.numpy as jnp
import numpy as np

from drifting_jax.pairs.data import as_floats
from drifting_jax.pairs.facts import PairFacts
from drifting_jax.steps.sampling import to_uint8


def rows_of_pairs(
    conditions: np.ndarray, targets: np.ndarray | None, samples: np.ndarray, facts: PairFacts
) -> np.ndarray:
    """Returns the tiles of a picture [n, columns, h, w, 1 or 3] uint8, a row for each condition.

    A condition is shown if it is an image, enlarged: of as many channels as the target, with sides
    that divide the target's. Of images of other than 1 or 3 channels the first is shown.

    Args:
      conditions: [n, ...] in the units of the data.
      targets: [n, h, w, c], uint8 or float in [-1, 1]; None for conditions without one.
      samples: [n, k, h, w, c], likewise.
      facts: of the pairs that the generator learned from.
    """
    columns = [samples]
    if targets is not None:
        columns.insert(0, targets[:, None])
    height, width, channels = facts.shapes.image
    of_condition = facts.shapes.condition
    is_image = len(of_condition) == 3 and of_condition[2] == channels
    if is_image and not height % of_condition[0] and not width % of_condition[1]:
        shown = facts.scaling.scaled(conditions).repeat(height // of_condition[0], axis=1)
        columns.insert(0, shown.repeat(width // of_condition[1], axis=2)[:, None])
    tiles = np.concatenate([as_bytes(column) for column in columns], axis=1)
    return tiles if channels in (1, 3) else tiles[..., :1]


def as_bytes(images: np.ndarray) -> np.ndarray:
    """Images uint8, or float in [-1, 1] -> uint8."""
    if images.dtype == np.uint8:
        return images
    return np.asarray(to_uint8(jnp.asarray(as_floats(images))))
