"""The programs' command lines: a mistake is one line on stderr and exit status 2."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from drifting_jax.commands.command_line import exit_status, given_fields
from drifting_jax.config import Field, base, base_config, load_config, resolve, stored
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


@pytest.mark.slow
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
        "configs/policy.py has no variants; found 'nope'": (
            "main.py", "--config=configs/policy.py:nope",
        ),
        "configs/policy.py has no variants; leave out the colon": (
            "main.py", "--config=configs/policy.py:",
        ),
        "config.seed must be at most 4294967295; found 20261129004512123456": (
            "main.py", f"--config={CONFIG}", "--config.seed=20261129004512123456",
        ),
        "expected a home folder for ~no-such-user/x": (
            "main.py", f"--config={CONFIG}", "--workdir=~no-such-user/x",
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
        "--price_per_hour goes with --dry_run": (
            "main.py", f"--config={CONFIG}", "--price_per_hour=2",
        ),
        "must be a number above 0, such as 2.5; found -1": (
            "main.py", f"--config={CONFIG}", "--dry_run", "--price_per_hour=-1",
        ),
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
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    assert run.resume_message(tmp_path).endswith("the same cell goes on from there")


@pytest.mark.parametrize(
    "name", [".DS_Store", "log", "log.1", "a.out", "slurm-7.err", "nohup.out", "logs/a.log", "own"]
)
def test_a_new_workdir_may_hold_the_log_of_its_job(tmp_path, name):
    log = tmp_path / name
    log.parent.mkdir(exist_ok=True)
    log.touch()
    with open(log, "a") as file, pytest.MonkeyPatch.context() as patch:
        if name == "own":
            real = os.fstat
            patch.setattr(os, "fstat", lambda n: real(file.fileno() if n == 1 else n))
        with open_workdir(resolve(base_config("toy")), tmp_path):
            pass
    assert (tmp_path / "config.json").exists()


@pytest.mark.parametrize("name", ["data.npz", "logs/data.npz", "photos/a.log"])
def test_a_folder_of_other_files_is_no_workdir(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.touch()
    first = name if name.startswith("logs") else name.partition("/")[0]
    with (
        pytest.raises(UserError, match=rf"holds files but no config.json.*has {first}\)"),
        open_workdir(resolve(base_config("toy")), tmp_path),
    ):
        pass


def test_a_workdir_has_a_name_that_a_config_can_hold(tmp_path):
    workdir = tmp_path / os.fsdecode(b"caf\xe9")
    with (
        pytest.raises(UserError, match=r"--workdir must be a UTF-8 name; found .*caf�"),
        open_workdir(resolve(base_config("toy")), workdir),
    ):
        pass
    assert not workdir.exists()


def test_a_run_that_is_older_than_a_field_goes_on_by_itself(tmp_path, monkeypatch):
    new = {**base.fields("toy"), "drift.power": Field(2.0, "a field of tomorrow", absent=1.0)}
    with open_workdir(resolve(base_config("toy")), tmp_path):
        (tmp_path / "checkpoints" / "2").mkdir(parents=True)
    for module in (base, stored):
        monkeypatch.setattr(module, "fields", lambda task: new)
    for _ in range(2):
        with open_workdir(resolve(base_config("toy")), tmp_path) as config:
            assert config.drift.power == 1.0
        assert load_config(tmp_path).drift.power == 1.0
    with (
        pytest.raises(UserError, match=r"drift.power cannot change .* has 1.0, now 2.0"),
        open_workdir(resolve(base_config("toy")), tmp_path, given=["drift.power"]),
    ):
        pass


def test_the_fields_that_a_command_sets():
    words = ["main.py", "--config=a.py", "--config.seed=1", "-config.a.b", "x", "--noconfig.c"]
    assert given_fields(words) == ["seed", "a.b", "c"]


def test_a_second_start_changes_nothing_of_the_first(tmp_path):
    first = base_config("toy")
    with open_workdir(resolve(first), tmp_path):
        pass
    before = (tmp_path / "config.json").read_bytes()
    first.seed = 9
    with lock.locked(tmp_path), pytest.raises(LockHeldError):
        run.run(resolve(first), workdir=tmp_path)
    assert (tmp_path / "config.json").read_bytes() == before
