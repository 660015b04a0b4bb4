"""One process, or one job, at a time in a workdir."""

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from drifting_jax.errors import LockHeldError

# A machine that was taken away holds a lock on a network disk until the disk's server notices.
_PATIENCE_SECONDS, _LOOK_EVERY_SECONDS = 150.0, 5.0


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Holds <workdir>/.lock; the system frees it when the process ends, however it ends.

    A lock that another machine holds is waited for, for some minutes: where it was pre-empted, its
    locks outlive it. A file system that knows no locks is used without one.

    Raises:
      LockHeldError: another process holds it; its number and machine are named.
    """
    path = workdir / ".lock"
    with open(path, "a+", encoding="utf-8") as file:
        try:
            _take(file, path)
        except LockHeldError:
            raise
        except OSError:
            yield
            return
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def _take(file: IO[str], path: Path) -> None:
    until = time.monotonic() + _PATIENCE_SECONDS
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
        time.sleep(_LOOK_EVERY_SECONDS)
