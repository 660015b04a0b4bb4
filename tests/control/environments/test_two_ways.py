"""The task with two ways: its rules, its expert, its picture."""

import numpy as np
import pytest

from drifting_jax.control.environments import two_ways
from drifting_jax.control.environments.two_ways import TwoWays


def walk(environment, points):
    """The last step of an episode that visits points."""
    step = None
    for point in points:
        for _ in range(40):
            step = environment.step(np.array(point))
            if step.ended or np.allclose(step.observation, point, atol=1e-6):
                break
        if step.ended:
            break
    return step


@pytest.mark.parametrize("side, name", [(1, "above"), (-1, "below")])
def test_both_ways_lead_to_the_goal(side, name):
    environment = TwoWays()
    environment.reset(0)
    step = walk(environment, [(-0.4, 0.6 * side), (0.4, 0.6 * side), (0.9, 0)])
    assert (step.success, step.ended, step.ending) == (True, True, name)


@pytest.mark.parametrize(
    "points, ending",
    [
        ([(0.9, 0)], "hit the obstacle"),
        ([(-0.9, 1.5)], "left the arena"),
        ([(np.nan, 0)], "left the arena"),
    ],
)
def test_what_fails(points, ending):
    environment = TwoWays()
    environment.reset(1)
    step = walk(environment, points)
    assert (step.success, step.ended, step.ending) == (False, True, ending)


def test_a_step_has_a_greatest_length_and_no_point_of_it_touches_the_obstacle():
    environment = TwoWays()
    first = environment.reset(2)
    step = environment.step(np.array([0.9, 0.9]))
    assert np.linalg.norm(step.observation - first) == pytest.approx(two_ways.SPEED, abs=1e-6)
    # A chord: both of its ends are outside of the disc, its middle is inside.
    radius, half = two_ways.OBSTACLE_RADIUS, 0.9 * two_ways.SPEED / 2
    height = np.sqrt(radius**2 - half**2) + 0.001
    assert np.hypot(half, height) > radius > height
    step = walk(environment, [(-0.9, 0.5), (-half, 0.5), (-half, height), (half, height)])
    assert step.ending == "hit the obstacle"


def test_beginnings_and_ways_come_from_the_seed_and_are_independent():
    environment = TwoWays()
    starts = np.array([environment.reset(seed) for seed in range(400)])
    assert np.all(starts[:, 0] == np.float32(-0.9)) and np.all(np.abs(starts[:, 1]) <= 0.1)
    assert np.array_equal(environment.reset(7), starts[7])
    ways = []
    for seed in range(400):
        act = environment.expert(seed)
        ways.append(np.sign(act(np.array([-0.1, 0.0]))[1]))
    assert abs(np.mean(ways)) < 0.15  # four standard deviations are 0.2
    assert abs(np.corrcoef(ways, starts[:, 1])[0, 1]) < 0.15


def test_a_picture_shows_the_point_on_its_way():
    environment = TwoWays()
    environment.reset(0)
    before = environment.draw()
    environment.step(np.array([-0.9, 0.9]))
    after = environment.draw()
    assert before.shape == after.shape == (160, 160, 3) and before.dtype == np.uint8
    changed = np.argwhere(np.any(before != after, axis=-1))
    assert changed[:, 0].max() <= 90 and changed[:, 1].max() <= 16  # at the left, upwards
