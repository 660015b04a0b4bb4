"""A workdir has one owner at a time, and none after its death."""

import subprocess
import sys

import pytest

from drifting_jax.errors import UserError
from drifting_jax.lock import locked


def test_a_second_owner_is_told_of_the_first(tmp_path):
    program = (
        "import pathlib, sys, time\n"
        "from drifting_jax.lock import locked\n"
        "with locked(pathlib.Path(sys.argv[1])):\n"
        "    print('here', flush=True)\n"
        "    time.sleep(60)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"here\n"
        with pytest.raises(UserError, match=rf"another process \({other.pid}\) runs in"):
            locked(tmp_path).__enter__()
        other.kill()
    with locked(tmp_path), pytest.raises(UserError), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass
