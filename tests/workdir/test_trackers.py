"""Trackers: they get what metrics.jsonl gets, keep one page, and never end or slow a run."""

import json
import sys
import threading

import fake_tracker
import numpy as np
import pytest
from fake_tracker import logged

from drifting_jax.errors import UserError
from drifting_jax.workdir.metrics import MetricWriter
from drifting_jax.workdir.trackers import TRACKERS, import_tracker, open_tracker

GREY = np.zeros((4, 6, 1), np.uint8)


def write(workdir, name, steps, *, config=None):
    """One start of a run, which logs the steps of two stages and a picture."""
    workdir.mkdir(parents=True, exist_ok=True)
    tracker = open_tracker(name, workdir=workdir, config=config or {})
    with MetricWriter(workdir, tracker=tracker) as writer:
        for step in steps:
            writer.write_scalars("toy", np.int64(step), {"loss": np.float32(step / 2)})
        writer.write_scalars("evaluation", 1, {"fid": 3.0})
        writer.write_image("toy", steps[-1], "samples", GREY)


@pytest.fixture
def no_settings(monkeypatch):
    """An environment without wandb's variables."""
    for name in ("PROJECT", "NAME", "DIR", "CONSOLE", "FINISH_TIMEOUT"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)


def test_wandb_gets_every_line_with_the_step_of_its_stage(tmp_path, monkeypatch, no_settings):
    calls = fake_tracker.install(monkeypatch, "wandb")
    write(tmp_path / "digits", "wandb", [1, 2], config={"seed": 4})
    assert [name for name, _, _ in calls if name != "log"] == [
        *("init", "define_metric", "define_metric", "finish")
    ]
    init = calls[0][2]
    assert (init["project"], init["name"]) == ("drifting_jax", "digits")
    assert (init["dir"], init["config"]) == (str(tmp_path / "digits"), {"seed": 4})
    axes = {args[0]: kwargs for name, args, kwargs in calls if name == "define_metric"}
    assert axes == {
        "toy/*": {"step_metric": "toy/step"},
        "evaluation/*": {"step_metric": "evaluation/step"},
    }
    assert logged(calls) == [  # no line has a step of wandb, which would drop the third
        {"toy/step": 1, "toy/loss": 0.5},
        {"toy/step": 2, "toy/loss": 1.0},
        {"evaluation/step": 1, "evaluation/fid": 3.0},
        {"toy/step": 2, "toy/samples": ("image", "L", (6, 4))},
    ]
    assert calls[-1] == ("finish", (), {"exit_code": 0})


def test_trackio_gets_every_line_with_its_step(tmp_path, monkeypatch):
    calls = fake_tracker.install(monkeypatch, "trackio")
    write(tmp_path / "digits", "trackio", [1])
    assert calls[0][2]["project"] == "drifting_jax"
    assert calls[0][2]["name"].startswith("digits-")  # trackio knows a run by its name alone
    assert logged(calls) == [
        {"toy/loss": 0.5, "step": 1},
        {"evaluation/fid": 3.0, "step": 1},
        {"toy/samples": ("image", "L", (6, 4)), "step": 1},
    ]
    assert calls[-1] == ("finish", (), {})


@pytest.mark.parametrize("name", TRACKERS)
def test_a_resumed_run_goes_on_with_its_page(tmp_path, monkeypatch, name):
    calls = fake_tracker.install(monkeypatch, name)
    for folder, steps in (("a", [1, 2, 3]), ("a", [3, 4]), ("b/a", [1])):
        write(tmp_path / folder, name, steps)
    key = {"wandb": "id", "trackio": "name"}[name]
    first, again, other = (args[key] for called, _, args in calls if called == "init")
    assert first == again != other
    assert json.loads((tmp_path / "a" / "tracker.json").read_text())[name] in first
    assert {args["resume"] for called, _, args in calls if called == "init"} == {"allow"}
    losses = [line["toy/loss"] for line in logged(calls) if "toy/loss" in line]
    assert losses == [0.5, 1.0, 1.5, 1.5, 2.0, 0.5]  # also the step that came again


def test_wandbs_own_variables_go_first(tmp_path, monkeypatch, no_settings):
    calls = fake_tracker.install(monkeypatch, "wandb")
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    monkeypatch.setenv("WANDB_CONSOLE", "wrap")
    write(tmp_path, "wandb", [1])
    assert "project" not in calls[0][2] and "name" in calls[0][2]
    assert calls[0][2]["settings"].keys() == {"finish_timeout"}


def test_an_error_of_the_run_is_told(tmp_path, monkeypatch):
    calls = fake_tracker.install(monkeypatch, "wandb")
    tracker = open_tracker("wandb", workdir=tmp_path, config={})
    with pytest.raises(KeyError), MetricWriter(tmp_path, tracker=tracker):
        raise KeyError
    assert calls[-1] == ("finish", (), {"exit_code": 1})


class Failing(fake_tracker.Page):
    def log(self, *_, **__):
        raise OSError("no space left on device")

    finish = log


class Hanging(fake_tracker.Page):
    go_on = threading.Event()

    def log(self, *_, **__):
        assert self.go_on.wait(60)


def test_a_tracker_that_fails_is_logged_once_and_the_run_goes_on(tmp_path, monkeypatch, errors):
    fake_tracker.install(monkeypatch, "wandb", page=Failing)
    write(tmp_path, "wandb", [1, 2, 3])
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 4
    assert errors == ["wandb failed, and the run goes on: OSError: no space left on device"]


def test_a_tracker_that_hangs_does_not_hold_up_the_run(tmp_path, monkeypatch, errors):
    calls = fake_tracker.install(monkeypatch, "trackio", page=Hanging)
    tracker = open_tracker("trackio", workdir=tmp_path, config={})
    for step in range(1000):
        tracker.log_scalars("toy", step, {})
    assert len(errors) == 1 and "behind" in errors[0]
    Hanging.go_on.set()
    tracker.close(failed=False)
    assert calls[-1][0] == "finish"


def test_a_missing_package_names_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"needs the package wandb .*pip install -e '\.\[wandb\]'"):
        import_tracker("wandb")
    monkeypatch.setitem(sys.modules, "wandb", type(sys)("wandb"))  # a folder of its output
    with pytest.raises(UserError, match=r"needs the package wandb \(a folder"):
        open_tracker("wandb", workdir=tmp_path, config={})
    assert not list(tmp_path.iterdir())


def test_a_page_that_does_not_open_ends_only_a_run_that_has_not_begun(
    tmp_path, monkeypatch, errors
):
    class Offline(fake_tracker.Page):
        def __init__(self, calls):
            raise RuntimeError("no network\nand many lines")

    fake_tracker.install(monkeypatch, "wandb", page=Offline)
    with pytest.raises(UserError, match=r"does not open: RuntimeError: no network$"):
        open_tracker("wandb", workdir=tmp_path, config={})
    fake_tracker.install(monkeypatch, "wandb")
    write(tmp_path, "wandb", [1])
    fake_tracker.install(monkeypatch, "wandb", page=Offline)
    write(tmp_path, "wandb", [2])
    assert errors == ["The run goes on without wandb: RuntimeError: no network"]


def test_no_tracker(tmp_path):
    assert open_tracker("none", workdir=tmp_path, config={}) is None
    assert not list(tmp_path.iterdir())
