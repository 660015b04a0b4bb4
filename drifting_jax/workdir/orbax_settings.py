"""Settings of Orbax: no tracebacks on the screen, and no endless waits."""

import contextlib
import logging as python_logging
import os
import threading
import traceback

from absl import flags, logging

_OF_ORBAX = f"{os.sep}orbax{os.sep}"


def quiet_orbax() -> None:
    """Keeps Orbax's tracebacks off the screen; `Checkpoints` logs in one line what failed.

    This affects Orbax's logs, the tracebacks of its threads, and asyncio's complaints about them.
    """
    others = threading.excepthook

    def of_thread(arguments: threading.ExceptHookArgs) -> None:
        frames = traceback.extract_tb(arguments.exc_traceback)
        if not any(_OF_ORBAX in frame.filename for frame in frames):
            others(arguments)

    threading.excepthook = of_thread
    python_logging.getLogger("asyncio").setLevel(python_logging.CRITICAL)
    logging.get_absl_handler().addFilter(lambda record: _OF_ORBAX not in record.pathname)


def use_barriers_that_time_out() -> None:
    """Makes Orbax wait with the coordinator's barriers, which time out, instead of collectives.

    A collective would wait for ever for a process that has failed, or be mistaken for another
    collective that this process has entered meanwhile.
    """
    with contextlib.suppress(KeyError):
        flags.FLAGS["experimental_orbax_use_distributed_barrier"].value = True
