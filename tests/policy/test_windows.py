"""Windows, their padding, their scaling and their neighbours, against plain loops."""

import json

import numpy as np
import pytest

from drifting_jax.data.neighbours import nearest_conditions
from drifting_jax.errors import UserError
from drifting_jax.policy.demonstrations import Demonstrations
from drifting_jax.policy.scaling import Scalings, frozen_lines
from drifting_jax.policy.windows import Horizons, WindowSource, window_rows
from drifting_jax.steps.scaling import scaling_of

PAPER = Horizons(observation=2, prediction=16, action=8)


def demonstrations(lengths, seed=0):
    rng = np.random.default_rng(seed)
    total = sum(lengths)
    values = [rng.normal(size=(total, n)).astype(np.float32) for n in (3, 2)]
    return Demonstrations(*values, np.cumsum(lengths))


def scalings_of(data):
    return Scalings(scaling_of(data.observations), scaling_of(data.actions))


def written_out(lengths, horizons):
    """Every window as a list of steps: from observation - 1 steps before to action - 1 after."""
    found, start = [], 0
    for length in lengths:
        last = length + horizons.action - 1 - horizons.prediction
        for first in range(-(horizons.observation - 1), last + 1):
            steps = range(first, first + horizons.prediction)
            found.append([start + min(max(step, 0), length - 1) for step in steps])
        start += length
    return np.array(found)


@pytest.mark.parametrize(
    "horizons", [PAPER, Horizons(1, 1, 1), Horizons(3, 4, 2), Horizons(1, 5, 5)], ids=str
)
def test_windows_are_those_of_a_loop(horizons):
    lengths = (20, 8, 30)
    ends = np.cumsum(lengths)
    found = window_rows(ends - lengths, ends, horizons)
    np.testing.assert_array_equal(found, written_out(lengths, horizons))


def test_the_ends_repeat_the_first_observation_and_the_last_action():
    data = demonstrations((20,))
    scalings = scalings_of(data)
    source = WindowSource(data, PAPER, scalings)
    assert len(source) == 20 + 1 + 7 - 16 + 1
    first, last = source[0], source[len(source) - 1]
    raw = scalings.observation.unscaled(first["condition"])
    np.testing.assert_allclose(raw, data.observations[[0, 0]], rtol=1e-5)
    assert last["target"].shape == (1, 16, 2)
    raw = scalings.action.unscaled(last["target"][0])
    np.testing.assert_allclose(raw, data.actions[[*range(11, 20), *[19] * 7]], rtol=1e-5, atol=1e-6)
    assert set(first) == {"condition", "target", "label"}


def test_what_is_carried_out_begins_at_the_last_observation():
    assert PAPER.executed == slice(1, 9)
    with pytest.raises(UserError, match=r"prediction_horizon must be at least .* = 9; found 8"):
        WindowSource(demonstrations((20,)), Horizons(2, 8, 8), scalings_of(demonstrations((20,))))


def test_episodes_that_are_too_short_have_no_window():
    data = demonstrations((7, 8))
    source = WindowSource(data, PAPER, scalings_of(data))
    assert (len(source), source.too_short) == (1, 1)  # a window of the second episode
    data = demonstrations((7, 5))
    with pytest.raises(UserError, match="the longest has 7 steps, and the horizons need 8"):
        WindowSource(data, PAPER, scalings_of(data))


def test_dimensions_that_are_not_scaled_are_named():
    rng = np.random.default_rng(0)
    observations, actions = rng.uniform(-1, 1, (2, 50, 4))
    observations[:, 2] = np.linspace(0, 3e-5, 50)
    actions[:, 0], actions[:, 3] = 0.5, np.linspace(7, 7 + 5e-5, 50)
    values = observations.astype(np.float32), actions.astype(np.float32)
    found = frozen_lines(Scalings(*map(scaling_of, values)), *values)
    assert [line[: line.index(" and are" if "warning" in line else " of")] for line in found] == [
        "warning: dimensions 2 (range 3e-05) of the observations have a range below 0.0001 in the "
        "demonstrations",
        "note: dimensions 0",
        "warning: dimensions 3 (range 5e-05) of the actions have a range below 0.0001 in the "
        "demonstrations",
    ]
    assert "hardly sees" in found[0] and "always gives the middle" in found[2]
    scaled = [x * 1e3 for x in values]
    found = frozen_lines(Scalings(*map(scaling_of, scaled)), *scaled)
    assert found == ["note: dimensions 0 of the actions are constant"]


def test_json_keeps_a_scaling_exactly():
    data = demonstrations((9,))
    scalings = scalings_of(data)
    found = Scalings.from_record(json.loads(json.dumps(scalings.record())), "data.json")
    for ours, theirs in zip(scalings, found, strict=True):
        np.testing.assert_array_equal(ours.centre, theirs.centre)
        np.testing.assert_array_equal(ours.half_range, theirs.half_range)
    good = scalings.record()
    for bad in (
        None,
        {},
        {"observation": 1},
        good | {"action": {"centre": [1], "half_range": [-1]}},
        good | {"action": {"centre": [10**400], "half_range": [1]}},
    ):
        with pytest.raises(UserError, match=r"data\.json does not hold the scaling of a"):
            Scalings.from_record(bad, "data.json")


def test_a_record_has_the_actions_of_its_neighbours():
    data = demonstrations((12, 12))
    source = WindowSource(data, Horizons(1, 1, 1), scalings_of(data), neighbours=3)
    record = source[5]
    number, distance = nearest_conditions(source.observation(np.arange(24))[:, 0], 3)
    assert record["target"].shape == (4, 1, 2) and record["distance"][0] == 0
    np.testing.assert_array_equal(record["target"], source.action(number[5]))
    np.testing.assert_array_equal(record["distance"], distance[5])


def test_windows_are_spread_over_all():
    data = demonstrations((12, 12))
    source = WindowSource(data, Horizons(1, 1, 1), scalings_of(data))
    np.testing.assert_array_equal(source.spread(4), [3, 9, 15, 21])
    np.testing.assert_array_equal(source.spread(100), np.arange(24))
