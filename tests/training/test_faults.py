"""Whole runs that are killed, and processes that lose each other, fail, or are asked to stop.

`tests/soak.py` kills more runs, with other seeds and as two processes.
"""

import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys

import faults
import numpy as np
import pytest
import quick_compiling
from child_processes import started

from drifting_jax.config import base_config, resolve
from drifting_jax.errors import UserError
from drifting_jax.training import run, toy
from drifting_jax.workdir.checkpoint import Checkpoints

KILLS, SEED = 3, 7


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nobody disturbed."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    with faults.Start(workdir) as start:
        start.finish()
    return workdir


@pytest.mark.slow
def test_a_killed_run_ends_with_the_bits_of_one_that_was_not(whole, tmp_path):
    kills = faults.plan(KILLS, processes=1, seed=SEED)
    outcomes = list(faults.survive(tmp_path / "killed", kills))
    print(*outcomes, sep="\n")
    assert len(outcomes) == KILLS
    assert not faults.differences(tmp_path / "killed", whole)


def test_the_kills_of_a_plan_are_spread_over_the_run():
    kills = faults.plan(300, processes=2, seed=0)
    points = [kill.point for kill in kills if kill.point >= 0]
    assert points == sorted(points)
    assert points[0] < faults.ENCODER / 4 and points[-1] > faults.ENCODER + faults.GENERATOR
    assert 60 < sum(kill.in_save for kill in kills) < 180
    assert {kill.victims for kill in kills} == {(0,), (1,), (0, 1)}
    assert {kill.sent for kill in kills} == {signal.SIGKILL, signal.SIGTERM}


def toy_config():
    """A toy of twelve steps that is saved every third."""
    found = base_config("toy")
    small = {
        "log_every": 3,
        "mesh.data": 1,
        "data.num_samples": 500,
        "model.widths": (128, 128),
        "train.num_steps": 12,
        "train.save_every": 3,
        "train.generated": 16,
        "train.positives": 16,
        "optim.warmup_steps": 2,
        "eval.num_samples": 64,
        "eval.directions": 4,
    }
    found.update_from_flattened_dict(small)
    return resolve(found)


@pytest.fixture
def full_disk(monkeypatch):
    """A set of steps at which no file of a checkpoint grows beyond 50 kB, as on a full disk.

    The thread that writes gets the error in the middle of a file.
    """
    steps, save = set(), Checkpoints.save
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def limited(self, step, items):
        if step not in steps:
            return save(self, step, items)
        self.wait()  # for the step before, which had room
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
        try:
            save(self, step, items)
            return self.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    monkeypatch.setattr(Checkpoints, "save", limited)
    monkeypatch.setattr(toy, "draw_pictures", lambda *_: None)
    yield steps
    signal.signal(signal.SIGXFSZ, previous)


# Orbax's threads die of the full disk.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_costs_checkpoints_and_at_last_the_run(full_disk, tmp_path, caplog):
    def result(name):
        return faults.read_step(tmp_path / name / "checkpoints" / "12")

    def saved(name):
        return sorted(p.name for p in (tmp_path / name / "checkpoints").iterdir())

    assert run.run(toy_config(), workdir=tmp_path / "room") == 0
    assert saved("room") == ["12", "9"]
    full_disk |= {6, 9}
    assert run.run(toy_config(), workdir=tmp_path / "short") == 0
    assert "THE CHECKPOINT OF STEP 9 WAS NOT SAVED" in caplog.text
    assert "Failed in a row: 2; the run stops at 3. The newest whole step: 3" in caplog.text
    assert saved("short") == ["12", "3"]
    full_disk |= {12}
    with pytest.raises(UserError, match=r"3 checkpoints in a row .* goes on from step 3$"):
        run.run(toy_config(), workdir=tmp_path / "long")
    full_disk.clear()
    assert run.run(toy_config(), workdir=tmp_path / "long") == 0
    for name in ("short", "long"):
        for path, expected in result("room").items():
            np.testing.assert_array_equal(result(name)[path], expected, err_msg=f"{name} {path}")


# One process of a run, in short: it asks the others whether to stop, as a loop does after a step.
_PROCESS = """
import sys, time
import jax, numpy as np, orbax.checkpoint as ocp
from absl import flags
from orbax.checkpoint import multihost
from drifting_jax.distributed import meshes, processes, transfer
from drifting_jax.workdir.checkpoint import Checkpoints
from drifting_jax.workdir.interruption import Interruption
from drifting_jax.workdir.stopping import StopAgreement

address, number, mode, folder = sys.argv[1:]
flags.FLAGS.mark_as_parsed()
# Orbax has no option for the barriers outside of its asynchronous saves.
multihost._DEFAULT_BARRIER_TIMEOUT = 8

def save(checkpoints, step):
    rows = transfer.global_batch(meshes.make_mesh(), np.full((1, 4), step, np.float32))
    checkpoints.save(step, {"rows": {"x": rows}})

def failing(*_, **__):
    raise OSError("no room here")

processes.initialize(coordinator_address=address, num_processes=2, process_id=int(number))
try:
    if mode == "starting":
        print("ready", flush=True)
        time.sleep(600)
    with Interruption() as asked:
        stops = StopAgreement(asked)
        stops()
        print("ready", flush=True)
        with Checkpoints(folder, keep=3, barrier_seconds=8) as checkpoints:
            if mode == "failing":
                save(checkpoints, 1)
            if mode.startswith("saving"):
                if number == "1":
                    name = "save" if mode == "saving" else "check_for_errors"
                    works = getattr(ocp.CheckpointManager, name)
                    setattr(ocp.CheckpointManager, name, failing)
                save(checkpoints, 1)
                print("saved 1:", checkpoints.wait(), flush=True)
                if number == "1":
                    setattr(ocp.CheckpointManager, name, works)
                save(checkpoints, 2)
                print("saved 2:", checkpoints.wait(), flush=True)
            while not mode.startswith("saving") and not stops():
                time.sleep(0.01)
                if mode == "failing" and number == "1":
                    raise RuntimeError("of process 1 alone")
    sys.exit(asked.exit_status)
except Exception:
    processes.end_soon()
    raise
"""


@pytest.fixture
def pair(tmp_path, processes_can_meet):
    """Starts two processes of a run and waits until they have met."""
    with contextlib.ExitStack() as stack:

        def start(mode: str) -> list[subprocess.Popen]:
            with socket.socket() as listener:
                listener.bind(("localhost", 0))
                address = f"localhost:{listener.getsockname()[1]}"
            processes = [
                stack.enter_context(
                    started(
                        [sys.executable, "-c", _PROCESS, address, number, mode, str(tmp_path)],
                        stdout=subprocess.PIPE,
                        stderr=subprocess.PIPE,
                        cwd=faults.ROOT,
                        text=True,
                        env=os.environ | {"XLA_FLAGS": quick_compiling.FLAGS},
                    )
                )
                for number in "01"
            ]
            for process in processes:
                while "ready" not in (line := process.stdout.readline()):
                    assert line, process.stderr.read()
            return processes

        yield start


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_to_one_process_ends_all_with_its_status(pair, number, status):
    processes = pair("running")
    processes[1].send_signal(number)
    assert [process.wait(faults.ALONE) for process in processes] == [status] * 2


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_has_lost_another_ends_by_itself(pair, victim):
    processes = pair("running")
    processes[victim].kill()
    assert processes[1 - victim].wait(faults.ALONE) not in (0, 75)


@pytest.mark.parametrize("mode", ["saving", "saving: the end"])
def test_a_save_that_fails_in_one_process_fails_in_all_and_the_next_goes_well(pair, mode, tmp_path):
    processes = pair(mode)
    for process in processes:
        printed, errors = process.communicate(timeout=faults.ALONE)
        assert "saved 1: False\nsaved 2: True" in printed, errors
        assert process.returncode == 0
        assert "THE CHECKPOINT OF STEP 1 WAS NOT SAVED" in errors
        assert "no room here" in errors  # also where the other process failed
    assert (tmp_path / "2").is_dir()


def test_a_process_that_fails_alone_does_not_wait_for_the_others(pair):
    processes = pair("failing")
    assert processes[1].wait(faults.ALONE) == 1
    assert "of process 1 alone" in processes[1].stderr.read()
    assert processes[0].wait(faults.ALONE) not in (0, 75)


def test_a_signal_to_a_process_that_only_starts_ends_it(pair):
    for process in reversed(pair("starting")):  # JAX itself ends the others when the first is gone
        process.send_signal(signal.SIGTERM)
        assert process.wait(faults.ALONE) == -signal.SIGTERM
