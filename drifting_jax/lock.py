"""One process, or one job, at a time in a workdir."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from drifting_jax.errors import UserError


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Holds <workdir>/.lock; the system frees it when the process ends, however it ends.

    A file system that knows no locks is used without one.

    Raises:
      UserError: another process holds it; its number is named.
    """
    with open(workdir / ".lock", "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(
                f"another process ({file.read().strip() or 'unknown'}) runs in {workdir}: wait for "
                "its end, or choose another folder"
            ) from None
        except OSError:
            yield
            return
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
