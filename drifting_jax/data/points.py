"""Two-dimensional targets of the toys: fresh draws, or a fixed set of points as a source."""

from __future__ import annotations

from typing import Any

import numpy as np

from drifting_jax.data.in_memory import ArraySource
from drifting_jax.data.transforms import Augmentation
from drifting_jax.errors import UserError

TARGETS = ("two_modes", "eight_gaussians", "checkerboard", "two_moons")

# Standard deviation, in each coordinate, of one mode of the mixtures.
MODE_STD = 0.2


def modes(target: str) -> np.ndarray | None:
    """Centres [m,2] float32 of the equally likely modes of a mixture, None for other targets.

    two_modes: (±1.5, 0). eight_gaussians: a circle of radius 2.

    Raises:
      UserError: an unknown target.
    """
    _check_target(target)
    if target == "two_modes":
        return np.array([[-1.5, 0.0], [1.5, 0.0]], np.float32)
    if target == "eight_gaussians":
        angles = np.arange(8) * np.pi / 4.0
        return (2.0 * np.stack([np.cos(angles), np.sin(angles)], axis=1)).astype(np.float32)
    return None


def sample_target(target: str, rng: np.random.Generator, n: int) -> np.ndarray:
    """Draws [n,2] float32 points of a target, centred on 0 and a few units wide.

    The mixtures have round modes of MODE_STD. checkerboard: uniform on the dark squares of a 4x4
    board over [-2,2]². two_moons: two half circles of radius 1 that interlock, MODE_STD/2 thick.

    Raises:
      UserError: an unknown target.
      ValueError: n is negative.
    """
    _check_target(target)
    if n < 0:
        raise ValueError(f"expected a number of points of 0 or more, found {n}")
    centres = modes(target)
    points: np.ndarray
    if centres is not None:
        chosen = centres[rng.integers(len(centres), size=n)]
        points = chosen + MODE_STD * rng.normal(size=(n, 2))
    elif target == "checkerboard":
        column, half = rng.integers(4, size=n), rng.integers(2, size=n)
        row = 2 * half + column % 2
        points = np.stack([column, row], axis=1) - 2.0 + rng.uniform(size=(n, 2))
    else:
        angle, lower = rng.uniform(0.0, np.pi, size=n), rng.integers(2, size=n)
        turn = 1.0 - 2.0 * lower  # the lower moon is the upper one turned by half a circle
        points = turn[:, None] * np.stack([np.cos(angle) - 0.5, np.sin(angle) - 0.25], axis=1)
        points = points + 0.5 * MODE_STD * rng.normal(size=(n, 2))
    return points.astype(np.float32)


class PointsSource(ArraySource):
    """A fixed set of points of a target as samples [2] float32 of one class.

    Raises:
      UserError: an unknown target.
      ValueError: fewer than one point.
    """

    def __init__(self, target: str, num_samples: int, seed: int):
        if num_samples < 1:
            raise ValueError(f"expected at least one point, found num_samples={num_samples}")
        points = sample_target(target, np.random.default_rng(seed), num_samples)
        super().__init__(points, np.zeros(num_samples), [target])

    def draw(
        self, index: int, rng: np.random.Generator, augmentation: Augmentation
    ) -> dict[str, Any]:
        """The point itself: points are not augmented."""
        return self[index]


def _check_target(target: str) -> None:
    if target not in TARGETS:
        raise UserError(f"a 2-D target is one of {', '.join(TARGETS)}; found {target!r}")
