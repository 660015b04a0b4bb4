"""Measurements: files, going on, summaries, pages."""

import json

import numpy as np
import pytest
from expert_planner import PLANS, StraightPlanner
from PIL import Image

from drifting_jax.control import measurement, page
from drifting_jax.control.environments.two_ways import TwoWays
from drifting_jax.control.rollouts import Episode


class ByLuck(StraightPlanner):
    """Goes around the obstacle in two of three episodes, and into it in the third."""

    def act(self, observations, *, seed, indices):
        self.calls += 1
        x = observations[:, -1, 0]
        around = np.where(x < -0.35, -0.3, np.where(x < 0.3, 0.4, 0.9))
        height = np.where(x < 0.3, 0.6, 0.0)
        lucky = indices // PLANS % 3 > 0
        target = np.stack([np.where(lucky, around, 0.9), np.where(lucky, height, 0.0)], -1)
        return np.repeat(target[:, None], 4, axis=1).astype(np.float32)


def settings(**more):
    return measurement.Settings("two_ways", {"step": 1}, episodes=6, **more)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    out = tmp_path_factory.mktemp("rollouts")
    planner = ByLuck((0, 0))
    episodes, summary = measurement.measure(
        planner, TwoWays, out, settings=settings(draw_every=4), seeds=[0, 1]
    )
    return out, planner, episodes, summary


def test_the_summary_counts(measured):
    out, _, episodes, summary = measured
    rates = [np.mean([e.success for e in episodes[seed]]) for seed in (0, 1)]
    assert rates == pytest.approx([2 / 3, 2 / 3])
    assert summary["success"] == pytest.approx(np.mean(rates))
    assert summary["success_deviation"] == pytest.approx(np.std(rates, ddof=1))
    shares = summary["endings"]
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["above"] == pytest.approx(np.mean(rates))
    assert json.loads((out / "rollouts.json").read_text()) == summary


def test_the_same_command_goes_on(measured):
    out, planner, episodes, _ = measured
    calls, untouched = planner.calls, (out / "seed_1.json").read_bytes()
    (out / "seed_0.npz").write_bytes(b"damaged")
    lines = []
    again, _ = measurement.measure(
        planner, TwoWays, out, settings=settings(draw_every=4), seeds=[0, 1], report=lines.append
    )
    timed = 23  # plans that measure the time
    assert timed < planner.calls - calls < calls
    assert (out / "seed_1.json").read_bytes() == untouched
    for seed in (0, 1):
        for a, b in zip(again[seed], episodes[seed], strict=True):
            assert np.array_equal(a.observations, b.observations)
            assert (a.index, a.success, a.ending) == (b.index, b.success, b.ending)
    assert lines[0].startswith("seed 0: ")


def test_other_settings_are_measured_anew(measured):
    out, *_ = measured
    known = settings().identity(1)
    assert measurement.read_seed(out, known) is not None
    for field, value in {"episodes": 5, "policy": {"step": 2}, "max_steps": 9, "seed": 2}.items():
        assert measurement.read_seed(out, known | {field: value}) is None


def test_animations_show_a_success_and_a_failure(measured):
    out, _, episodes, _ = measured
    for kind, success in (("success", True), ("failure", False)):
        first = next(e for e in episodes[0] if e.success == success)
        with Image.open(out / f"seed_0_{kind}.gif") as picture:
            assert picture.size == (160, 160)
            assert picture.n_frames == 1 + first.steps // 4 + (first.steps % 4 > 0)


class Undrawable(TwoWays):
    """A task on a machine that cannot draw."""

    def draw(self):
        raise RuntimeError("no screen")


def test_what_cannot_be_drawn_is_left_out(tmp_path, caplog):
    (tmp_path / "seed_0_failure.gif").write_bytes(b"of an earlier policy")
    found, summary = measurement.measure(
        ByLuck((0, 0)), Undrawable, tmp_path, settings=settings(), seeds=[0], report=len
    )
    assert 0 < summary["success"] < 1 and not list(tmp_path.glob("*.gif"))
    assert "No animation of seed 0: RuntimeError: no screen" in caplog.text
    assert "<h2>Rollouts</h2>" in page.write_page(tmp_path, found, summary, title="").read_text()


def test_the_page_has_everything_inside(measured):
    out, _, episodes, summary = measured
    text = page.write_page(out, episodes, summary, title="Rollouts of <a run>").read_text()
    assert "<h1>Rollouts of &lt;a run&gt;</h1>" in text
    assert text.count("data:image/gif;base64,") == 4  # two for each seed
    assert text.count("data:image/png;base64,") == 1  # the paths
    assert "Ended: hit the obstacle" in text and "<th>seed 1</th>" in text
    assert "http" not in text.replace("http-equiv", "")


def test_one_seed_has_no_deviation():
    lost = Episode(0, False, "out of time", np.zeros((3, 2), np.float32), [])
    found = measurement.summarize({4: [lost]})
    assert (found["success"], found["success_deviation"]) == (0.0, None)
    assert found["steps_of_a_success"] is None
    assert page.percent(0.5) == "50.0%" and page.percent(0.5, 0.02) == "50.0 ± 2.0%"


def test_a_stopped_measurement_keeps_its_seeds(tmp_path):
    said = []
    found = measurement.measure(
        ByLuck((0, 0)),
        TwoWays,
        tmp_path,
        settings=settings(draw_every=0),
        seeds=[0, 1],
        report=said.append,
        stopped=lambda: bool(said),
    )
    assert found is None and len(said) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"seed_0.json", "seed_0.npz"}
