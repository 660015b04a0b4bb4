"""One process, or one job of several processes, at a time in a workdir."""

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from drifting_jax.distributed.agreement import on_main_process
from drifting_jax.errors import LockHeldError


@contextlib.contextmanager
def locked_by_main_process(folder: Path) -> Iterator[None]:
    """Context in which this job holds `locked`; all processes of the job must enter it.

    Raises:
      LockHeldError: another job holds the lock; raised on all processes.
    """
    with contextlib.ExitStack() as stack:

        def enter() -> None:
            stack.enter_context(locked(folder))

        on_main_process(enter)
        yield


@contextlib.contextmanager
def locked(
    workdir: Path, *, patience_seconds: float = 150.0, look_every_seconds: float = 5.0
) -> Iterator[None]:
    """Context that holds <workdir>/.lock. The system frees it when the process ends in any way.

    A lock that a process of another machine holds is waited for: when a machine is pre-empted, the
    server of a network disk keeps its locks until it notices. A file system without locks is used
    without one.

    Args:
      workdir: the folder.
      patience_seconds: how long to wait for a lock of another machine.
      look_every_seconds: time between two tries.

    Raises:
      LockHeldError: another process holds it. The message names that process and its machine.
    """
    path = workdir / ".lock"
    with open(path, "a+", encoding="utf-8") as file:
        try:
            _take(file, path, patience_seconds, look_every_seconds)
        except LockHeldError:
            raise
        except OSError:
            yield
            return
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def _take(file: IO[str], path: Path, patience_seconds: float, look_every_seconds: float) -> None:
    until = time.monotonic() + patience_seconds
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
        if holder.endswith(f" on {socket.gethostname()}") or time.monotonic() > until:
            raise LockHeldError(
                f"{holder} runs in {path.parent}: wait for its end, or choose another folder; if "
                f"that process is gone for good, delete {path}"
            )
        time.sleep(look_every_seconds)
