"""A workdir has one owner at a time, and none after the owner's death."""

import fcntl
import os
import subprocess
import sys
import threading
import time

import pytest
from child_processes import started

from drifting_jax.errors import LockHeldError, UserError
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
    with started(command, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"here\n"
        with pytest.raises(
            UserError, match=rf"process {other.pid} on .* runs in .*delete .*\.lock"
        ):
            locked(tmp_path).__enter__()
    with locked(tmp_path), pytest.raises(UserError), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def test_a_lock_of_another_machine_is_waited_for_in_vain(tmp_path):
    with locked(tmp_path):
        (tmp_path / ".lock").write_text("process 7 on elsewhere\n")
        began = time.monotonic()
        with pytest.raises(LockHeldError, match="process 7 on elsewhere runs in"):
            locked(tmp_path, patience_seconds=0.1, look_every_seconds=0.01).__enter__()
        assert time.monotonic() - began > 0.1


def test_a_lock_that_another_machine_has_lost_is_taken(tmp_path):
    with open(tmp_path / ".lock", "a+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        held.write("process 7 on elsewhere\n")
        held.flush()
        notices = threading.Timer(0.2, fcntl.flock, (held, fcntl.LOCK_UN))  # the disk's server
        began = time.monotonic()
        notices.start()
        with locked(tmp_path, look_every_seconds=0.01):
            assert time.monotonic() - began > 0.2
            assert str(os.getpid()) in (tmp_path / ".lock").read_text()
        notices.join()
