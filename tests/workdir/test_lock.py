"""A workdir has one owner at a time, and none after its death."""

import fcntl
import os
import subprocess
import sys
import time

import pytest

from drifting_jax.errors import LockHeldError, UserError
from drifting_jax.workdir import lock
from drifting_jax.workdir.lock import locked


def test_a_second_owner_is_told_of_the_first(tmp_path):
    program = (
        "import pathlib, sys, time\n"
        "from drifting_jax.workdir.lock import locked\n"
        "with locked(pathlib.Path(sys.argv[1])):\n"
        "    print('here', flush=True)\n"
        "    time.sleep(60)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"here\n"
        with pytest.raises(
            UserError, match=rf"process {other.pid} on .* runs in .*delete .*\.lock"
        ):
            locked(tmp_path).__enter__()
        other.kill()
    with locked(tmp_path), pytest.raises(UserError), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def test_a_lock_of_another_machine_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_LOOK_EVERY_SECONDS", 0.01)
    monkeypatch.setattr(lock, "_PATIENCE_SECONDS", 0.1)
    with locked(tmp_path):
        (tmp_path / ".lock").write_text("process 7 on elsewhere\n")
        started = time.monotonic()
        with pytest.raises(LockHeldError, match="process 7 on elsewhere runs in"):
            locked(tmp_path).__enter__()
        assert time.monotonic() - started > 0.1

        def sleep(_):
            fcntl.flock(held, fcntl.LOCK_UN)  # the server has noticed

        monkeypatch.setattr(lock.time, "sleep", sleep)
    with open(tmp_path / ".lock", "a+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        held.truncate(0)
        held.write("process 7 on elsewhere\n")
        held.flush()
        with locked(tmp_path):
            assert str(os.getpid()) in (tmp_path / ".lock").read_text()
