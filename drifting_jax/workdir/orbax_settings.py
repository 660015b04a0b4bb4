"""Orbax as this project wants it: quiet, and never waiting for ever."""

import contextlib
import logging as python_logging
import os
import threading
import traceback

from absl import flags, logging

_OF_ORBAX = f"{os.sep}orbax{os.sep}"


def quiet_orbax() -> None:
    """Keeps Orbax's tracebacks from the screen: `Checkpoints` says in a line what failed.

    Affects logs and dying threads of Orbax alone, and asyncio's complaints about the latter.
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
    """Lets Orbax wait by the coordinator, for five minutes, and not in a collective, for ever.

    A process that failed is elsewhere, and the collectives of both would be taken for each other.
    """
    with contextlib.suppress(KeyError):
        flags.FLAGS["experimental_orbax_use_distributed_barrier"].value = True
