"""SIGTERM and Ctrl-C as a request to stop after the step at hand, so that it can be saved."""

import os
import signal
import sys
import threading
import time
from types import FrameType, TracebackType

EXIT_RESUMABLE = 75  # stopped by SIGTERM, saved, may be started again
EXIT_INTERRUPTED = 130  # stopped by Ctrl-C, saved

_EXIT_STATUS = {signal.SIGTERM: EXIT_RESUMABLE, signal.SIGINT: EXIT_INTERRUPTED}
_SAME_SIGNAL_SECONDS = 1.0


class Interruption:
    """Context in which SIGTERM and SIGINT set a flag that the loop reads between steps.

    A SIGINT after that ends the process at once with status 130; the checkpoints already written
    stay whole. Launchers repeat to their children what the terminal has sent them already, so one
    within a second of the first signal counts as the same. A SIGTERM after the first signal changes
    nothing: schedulers send several, and a save under way must live. Outside the main thread, where
    Python takes no signals, the context does nothing. In a run of many processes each has its own
    flag: the loop must let them agree on the step at which to stop.
    """

    def __init__(self, *, soon: str = "saving and stopping after this step") -> None:
        """Begins without a signal.

        Args:
          soon: what a first signal makes the program do, in words.
        """
        self._soon = soon
        self._received: int | None = None
        self._joined = 0
        self._received_at = 0.0
        self._previous: dict[int, object] = {}

    @property
    def requested(self) -> bool:
        """Whether a signal has asked the run to stop."""
        return self.exit_status != 0

    @property
    def exit_status(self) -> int:
        """0 if no signal came, 75 after SIGTERM, 130 after Ctrl-C."""
        return self._joined or (0 if self._received is None else _EXIT_STATUS[self._received])

    def join(self, exit_status: int) -> None:
        """Counts as asked to stop and to end with this status, as another process of the run."""
        self._joined = exit_status

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            for number in _EXIT_STATUS:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            # A handler that was not installed from Python cannot be put back by Python.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self._received is None:
            self._received, self._received_at = signal.Signals(number), time.monotonic()
            _say(
                f"{name}: {self._soon}, or the next that the processes agree on; Ctrl-C (SIGINT) "
                "from now on stops at once"
            )
        elif number == signal.SIGINT and (
            time.monotonic() - self._received_at > _SAME_SIGNAL_SECONDS
        ):
            _say(f"{name}: stopping at once, without saving")
            os._exit(128 + number)  # sys.exit would wait for the threads that still write


def _say(message: str) -> None:
    # A handler may run in the middle of a print: the buffered streams cannot be entered twice.
    os.write(sys.stderr.fileno() if sys.stderr else 2, f"\n{message}\n".encode())
