"""Finds and ends the processes that tests started, with their children, whatever became of them.

Children inherit the environment, so a variable in it marks them all: also those that have left the
process group, and those whose parent is gone.
"""

import os
import time

import psutil

OF_A_TEST = "STARTED_BY_TEST"  # the folder of the test
OF_A_RUN = "STARTED_BY_TESTS"  # one value for all processes of one call of pytest


def marked(name: str, value: str) -> list[psutil.Process]:
    """Living processes other than this one that were started with this variable."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(name) == value:
                found.append(process)
        except (psutil.Error, OSError):
            continue  # it has ended, or belongs to another user
    return found


def end(name: str, value: str, *, patience: float = 20.0) -> list[str]:
    """Kills the marked processes until none is left; returns the commands of those it found.

    Raises:
      RuntimeError: some live on.
    """
    ended, deadline = [], time.monotonic() + patience
    while left := marked(name, value):
        if time.monotonic() > deadline:
            raise RuntimeError(f"expected {left} to end when killed, found them alive")
        for process in left:
            try:
                ended.append(" ".join(process.cmdline()))
                process.kill()
            except psutil.Error:
                continue
        psutil.wait_procs(left, timeout=1)
    return ended
