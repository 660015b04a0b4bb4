"""The conditions of a data set that are nearest to each other: further positives of a row."""

import numpy as np

from drifting_jax.errors import UserError


def nearest_conditions(conditions: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the numbers [n, 1 + count] and distances of each condition's nearest ones.

    A condition itself comes first, at distance 0. Distances are root mean squares over the
    dimensions.

    Args:
      conditions: [n, d] float32, each dimension from -1 to 1.
      count: neighbours of each, besides itself.

    Raises:
      UserError: there are not so many.
    """
    n, d = conditions.shape
    if count >= n:
        raise UserError(
            f"config.single_target.neighbours must be below the {n} conditions; found {count}"
        )
    number, distance = _nearest(conditions, conditions, count + 1)
    # Equal conditions come in any order, and more of them than fit may leave a condition out.
    own = np.arange(n)[:, None]
    is_own = number == own
    is_own[~is_own.any(axis=1), -1] = True
    order = np.argsort(~is_own, axis=1, kind="stable")
    number = np.where(is_own, own, number)
    number, distance = (np.take_along_axis(a, order, axis=1) for a in (number, distance))
    distance[:, 0] = 0
    return number.astype(np.int64), (distance / d**0.5).astype(np.float32)


def nearest_of(conditions: np.ndarray, others: np.ndarray, count: int) -> np.ndarray:
    """Returns the numbers [n, count] int64 of the nearest of others for each condition.

    Args:
      conditions: [n, d] float32.
      others: [m, d] float32.
      count: of them, from 1 to m.
    """
    return _nearest(conditions, others, count)[0].astype(np.int64)


def _nearest(
    conditions: np.ndarray, others: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """The numbers and distances [n, count] of the nearest of others, the nearest one first."""
    from sklearn.neighbors import NearestNeighbors  # it takes seconds to import

    distance, number = NearestNeighbors(n_neighbors=count).fit(others).kneighbors(conditions)
    return number, distance
