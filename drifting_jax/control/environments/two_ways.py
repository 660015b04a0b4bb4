"""A point that has to get past an obstacle: above or below, both as good, and the mean is a crash.

The arena is [-1, 1]². The point starts at the left, at (-0.9, y) with |y| <= 0.1. It has to reach
the goal at (0.9, 0). A disc around the origin is in the way. An action [2] is the position to move
to; a step moves the point there, by at most SPEED. Which way a demonstration takes does not depend
on where it starts, so nothing in the first observation tells it.
"""

import numpy as np
from PIL import Image, ImageDraw

from drifting_jax.control.environments.environment import Expert, Step

START_X, START_SPREAD = -0.9, 0.1
GOAL, GOAL_RADIUS = np.array([0.9, 0.0]), 0.1
OBSTACLE_RADIUS = 0.3
SPEED = 0.12  # the farthest that a step moves the point
HEIGHTS = (0.5, 0.65)  # how far from the middle a demonstration passes the obstacle
EXPERT_STEPS = 32  # of a demonstration
WOBBLE = 0.01  # standard deviation of a demonstrated action

_SIDE = 160  # pixels of a picture
_SHARPER = 3  # pictures are drawn this much larger


class TwoWays:
    """The task; an observation is the position [2] of the point."""

    observation_size = 2
    action_size = 2
    max_steps = 64
    steps_after_success = 0

    def __init__(self) -> None:
        self._position = np.zeros(2)
        self._trail: list[np.ndarray] = []
        self._way = ""

    def reset(self, seed: int) -> np.ndarray:
        """Begins the episode of a seed and returns its first observation [2] float32."""
        self._position = _start(seed)
        self._trail = [self._position]
        self._way = ""
        return self._position.astype(np.float32)

    def step(self, action: np.ndarray) -> Step:
        """Moves the point towards an action [2]; touching the obstacle or a wall ends it."""
        before = self._position
        move = np.asarray(action, np.float64) - before
        move *= min(1.0, SPEED / max(float(np.linalg.norm(move)), 1e-12))
        self._position = before + move
        self._trail.append(self._position)
        if before[0] < 0 <= self._position[0]:
            self._way = "above" if self._position[1] > 0 else "below"
        observation = self._position.astype(np.float32)
        if _distance_to_segment(before, self._position) < OBSTACLE_RADIUS:
            return Step(observation, False, True, "hit the obstacle")
        if not np.all(np.abs(self._position) <= 1):  # NaN is outside, too
            return Step(observation, False, True, "left the arena")
        if np.linalg.norm(self._position - GOAL) < GOAL_RADIUS:
            return Step(observation, True, True, self._way)
        return Step(observation, False, False, "")

    def draw(self) -> np.ndarray:
        """Returns a picture [160, 160, 3] uint8: obstacle, goal, point and its trail."""
        side = _SIDE * _SHARPER
        image = Image.new("RGB", (side, side), "#ffffff")
        pen = ImageDraw.Draw(image)
        _disc(pen, np.zeros(2), OBSTACLE_RADIUS, "#5c6874")
        _disc(pen, GOAL, GOAL_RADIUS, "#8fc79a")
        pen.line([_pixel(point) for point in self._trail], fill="#e5a1aa", width=2 * _SHARPER)
        _disc(pen, self._position, 0.04, "#b4233f")
        return np.asarray(image.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS))

    def expert(self, seed: int) -> Expert:
        """Returns a demonstrator of the episode: one of both ways, by a coin of the seed.

        It follows half a sine wave of random height, with a small wobble.
        """
        rng = np.random.default_rng([seed, 1])
        height = rng.choice((-1, 1)) * rng.uniform(*HEIGHTS)
        start = _start(seed)

        def act(observation: np.ndarray) -> np.ndarray:
            done = (observation[0] - START_X) / (GOAL[0] - START_X)
            t = np.clip(done + 1 / EXPERT_STEPS, 0, 1)
            target = start * (1 - t) + GOAL * t
            target[1] += height * np.sin(np.pi * t)
            return (target + WOBBLE * rng.standard_normal(2)).astype(np.float32)

        return act


def _start(seed: int) -> np.ndarray:
    """The position [2] in which the episode of a seed begins."""
    return np.array([START_X, np.random.default_rng(seed).uniform(-START_SPREAD, START_SPREAD)])


def _distance_to_segment(a: np.ndarray, b: np.ndarray) -> float:
    """Distance of the origin to the points between a and b."""
    along = b - a
    length = float(along @ along)
    t = np.clip(-(a @ along) / length, 0, 1) if length else 0.0
    return float(np.linalg.norm(a + t * along))


def _pixel(point: np.ndarray) -> tuple[float, float]:
    """The pixel of a position; y points up."""
    x, y = (np.asarray(point) * [1, -1] + 1) / 2 * _SIDE * _SHARPER
    return float(x), float(y)


def _disc(pen: ImageDraw.ImageDraw, center: np.ndarray, radius: float, colour: str) -> None:
    (x, y), r = _pixel(center), radius / 2 * _SIDE * _SHARPER
    pen.ellipse((x - r, y - r, x + r, y + r), fill=colour)
