"""The programs' command lines: a mistake is one line on stderr and exit status 2."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from drifting_jax.commands.command_line import exit_status
from drifting_jax.config import base_config, resolve
from drifting_jax.errors import LockHeldError, TransientError, UserError
from drifting_jax.training import run
from drifting_jax.workdir import lock
from drifting_jax.workdir.opening import open_workdir

ROOT = Path(__file__).parents[2]
CONFIG = "tests/helpers/tiny_config.py"


def start(*arguments: str) -> subprocess.Popen:
    """A Python process in the repository."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_mistakes_are_one_line_and_status_two(tmp_path):
    nowhere = tmp_path / "nowhere"
    sampling = ("-m", "drifting_jax.sample", f"--workdir={nowhere}")
    commands = {
        "config.train.num_stepz does not exist; the nearest field is config.train.num_steps": (
            "main.py", f"--config={CONFIG}", "--config.train.num_stepz=1",
        ),
        "has no variant 'nonsense'; it knows collapsed": (
            "main.py", "--config=configs/toy2d.py:nonsense",
        ),
        "configs/digits.py has no variants; found 'nope'": (
            "main.py", "--config=configs/digits.py:nope",
        ),
        "--config is missing": ("main.py", f"--workdir={nowhere}"),
        "--config.data.flip=maybe: Non-boolean argument": (
            "main.py", f"--config={CONFIG}", "--config.data.flip=maybe",
        ),
        "No such file or directory: '/proc/": (
            "main.py", f"--config={CONFIG}", "--workdir=/proc/none",
        ),
        "make the rows 8, or the samples per row 8": (
            "main.py", f"--config={CONFIG}", f"--workdir={tmp_path / 'rows'}",
            "--config.mesh.data=8", "--config.train.generated_per_label=3",
        ),
        "flags alone; found 'stray'": ("main.py", f"--config={CONFIG}", "stray"),
        f"{nowhere} holds no run": sampling,
        "expected one of --workdir and --weights": ("-m", "drifting_jax.sample"),
        "flag --per_class=0": (*sampling, "--per_class=0"),
    }  # fmt: skip
    started = {message: start(*arguments) for message, arguments in commands.items()}
    for message, process in started.items():
        _, error = process.communicate(timeout=300)
        assert process.returncode == 2, (message, error)
        lines = error.strip().splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: "), (message, error)
        assert message in lines[0]
    assert not nowhere.exists()


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UserError("a mistake"), 2),
        (FileNotFoundError("no file"), 2),
        (LockHeldError("locked"), 1),
        (TransientError("three saves have failed"), 1),
        (OSError(errno.ENOSPC, "no space"), 1),
        (TimeoutError("no answer"), 1),
    ],
)
def test_only_mistakes_have_the_status_that_launchers_take_for_the_end(error, status):
    assert exit_status(error) == status


def test_how_to_go_on_is_told_without_what_a_launcher_added(monkeypatch, tmp_path):
    words = ["python", "main.py", "--config=a.py", "--coordinator=a:1", "--num_processes", "2"]
    monkeypatch.setattr(sys, "orig_argv", [*words, "--process_id=0", "--workdir=b c"])
    assert run.resume_message(tmp_path).endswith("\n  python main.py --config=a.py '--workdir=b c'")


def test_a_second_start_changes_nothing_of_the_first(tmp_path):
    first = base_config("toy")
    with open_workdir(resolve(first), tmp_path):
        pass
    before = (tmp_path / "config.json").read_bytes()
    first.seed = 9
    with lock.locked(tmp_path), pytest.raises(LockHeldError):
        run.run(resolve(first), workdir=tmp_path)
    assert (tmp_path / "config.json").read_bytes() == before
