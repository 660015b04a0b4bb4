"""However a run ends, its tracker is closed exactly once, and says whether it failed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import fake_tracker
import pytest
from tiny_toy import config

from drifting_jax.errors import TransientError, UserError
from drifting_jax.training import run, toy
from drifting_jax.workdir.trackers import TRACKERS

ROOT = Path(__file__).parents[2]


def ends_of(calls) -> list[dict]:
    """The arguments of each call that closed a page."""
    return [kwargs for name, _, kwargs in calls if name == "finish"]


@pytest.mark.parametrize("name", TRACKERS)
def test_a_run_that_ends_well_closes_its_tracker_once(tmp_path, monkeypatch, name):
    calls = fake_tracker.install(monkeypatch, name)

    def train(config, *, workdir, context):
        context.writer.write_scalars("toy", 1, {"loss": 1.0})
        return True

    monkeypatch.setattr(toy, "train", train)
    assert run.run(config(tracker=name), workdir=tmp_path / "toy") == 0
    assert [called for called, _, _ in calls if called != "define_metric"] == [
        *("init", "log", "finish")
    ]
    assert ends_of(calls) == [{"exit_code": 0} if name == "wandb" else {}]


@pytest.mark.parametrize("error", [UserError("bad"), TransientError("disk"), KeyError("bug")])
def test_an_error_closes_it_once(tmp_path, monkeypatch, error):
    calls = fake_tracker.install(monkeypatch, "wandb")

    def train(config, *, workdir, context):
        raise error

    monkeypatch.setattr(toy, "train", train)
    with pytest.raises(type(error)):
        run.run(config(tracker="wandb"), workdir=tmp_path / "toy")
    assert ends_of(calls) == [{"exit_code": 1}]


def test_a_workdir_that_cannot_be_written_closes_it_once(tmp_path, monkeypatch):
    calls = fake_tracker.install(monkeypatch, "wandb")
    (tmp_path / "toy" / "metrics.jsonl").mkdir(parents=True)
    (tmp_path / "toy" / "config.json").write_text("{}")
    with pytest.raises(OSError):
        run.run(config(tracker="wandb"), workdir=tmp_path / "toy")
    assert ends_of(calls) == [{"exit_code": 1}]


def test_sigterm_closes_it_once_and_is_no_failure(tmp_path, monkeypatch):
    class Stopping(fake_tracker.Page):
        """The page of a run that gets SIGTERM at its first line, and again while it is closed."""

        def __getattr__(self, name):
            if name in ("log", "finish"):
                os.kill(os.getpid(), signal.SIGTERM)
            return super().__getattr__(name)

    calls = fake_tracker.install(monkeypatch, "wandb", page=Stopping)
    workdir = tmp_path / "toy"
    status = run.run(config(tracker="wandb", log_every=1), workdir=workdir)
    assert status == 75
    assert ends_of(calls) == [{"exit_code": 0}]
    (saved,) = (path.name for path in (workdir / "checkpoints").iterdir())
    assert 0 < int(saved) < 300


@pytest.mark.parametrize("name", TRACKERS)
def test_without_the_package_a_run_is_refused_in_one_line(tmp_path, name):
    (tmp_path / f"{name}.py").write_text(f"raise ModuleNotFoundError('No module named {name}')")
    found = subprocess.run(
        [
            *(sys.executable, "main.py", "--config=configs/toy2d.py"),
            *(f"--config.tracker={name}", f"--workdir={tmp_path / 'run'}"),
        ],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 2
    (line,) = found.stderr.splitlines()
    assert line.startswith(f"error: config.tracker={name} needs the package {name} ")
    assert f"pip install -e '.[{name}]'" in line
    assert not (tmp_path / "run").exists()
