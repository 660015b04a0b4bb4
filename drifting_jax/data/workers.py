"""The worker processes of the pipeline: how they start and end, and what goes wrong with them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import flags

from drifting_jax.errors import TransientError

_MAIN_MODULE, _NAMES = threading.Lock(), ("__file__", "__spec__")
_SHARED_MEMORY = Path("/dev/shm")


def require_parsed_flags() -> None:
    """Lets grain read its flags where no command line was parsed: in a script or a notebook."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


@contextlib.contextmanager
def main_module_hidden() -> Iterator[None]:
    """Workers that start within this context do not run the script of this process.

    By default, each worker runs that script once more, up to `if __name__ == "__main__":`. A script
    without this line would then train in its workers. What the workers need of the main module is
    sent to them.
    """
    with _MAIN_MODULE:
        main: dict[str, Any] = sys.modules["__main__"].__dict__
        kept: dict[str, Any] = {name: main[name] for name in main if name in _NAMES}
        main.pop("__file__", None)
        main["__spec__"] = None
        try:
            yield
        finally:
            main.update(kept)


@contextlib.contextmanager
def explained(num_workers: int) -> Iterator[None]:
    """Turns what grain raises when workers fail into an error that says what to do.

    Errors of the source do not have these types.

    Raises:
      TransientError: the workers cannot share memory, or one of them was killed.
    """
    try:
        yield
    except OSError as error:
        if not num_workers:
            raise
        raise TransientError(_no_shared_memory(str(error))) from None
    except RuntimeError as error:
        found = re.search(r"terminated unexpectedly with exit code (-?\d+)", str(error))
        if not found:
            raise
        code = int(found[1])
        if code == -signal.SIGBUS:  # it wrote where /dev/shm had no room
            raise TransientError(_no_shared_memory("a worker ended with SIGBUS")) from None
        raise TransientError(
            f"a data worker ended with exit code {code}"
            f"{', killed, perhaps because memory was short' if code == -signal.SIGKILL else ''}: "
            "see the lines above, and try fewer workers (--config.data.num_workers)"
        ) from None


def _no_shared_memory(reason: str) -> str:
    try:
        usage = shutil.disk_usage(_SHARED_MEMORY)
        size = f"{usage.total / 2**20:.1f} MiB, {usage.free / 2**20:.1f} MiB of it free"
    except OSError:
        size = "which cannot be used"
    return (
        f"the data workers pass batches through shared memory in {_SHARED_MEMORY} ({size}), and "
        f"that failed: {reason}. Make it larger (docker run --shm-size=8g …) or read without "
        "workers (--config.data.num_workers=0)"
    )


def start(worker: int, workers: int) -> None:
    """Makes a worker ignore signals, and end when the training process ends.

    Terminals and job systems send signals to the whole process group, but the training process
    needs more batches before it can save. Workers of a killed process would stay for ever, with
    their shared memory.
    """
    del worker, workers
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None, "this runs in a worker process"

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
