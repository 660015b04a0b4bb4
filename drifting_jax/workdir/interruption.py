"""SIGTERM, SIGHUP, SIGUSR1 and Ctrl-C ask a loop to stop after the current step, and save."""

import contextlib
import os
import signal
import sys
import threading
import time
from types import FrameType, TracebackType
from typing import Any

EXIT_RESUMABLE = (
    75  # stopped by another signal than Ctrl-C and saved; a launcher may start it again
)
EXIT_INTERRUPTED = 130  # stopped by Ctrl-C and saved

_EXIT_STATUS: dict[int, int] = {
    signal.SIGTERM: EXIT_RESUMABLE,
    signal.SIGHUP: EXIT_RESUMABLE,  # the terminal has gone
    signal.SIGUSR1: EXIT_RESUMABLE,  # what SLURM's --signal is usually given
    signal.SIGINT: EXIT_INTERRUPTED,
}
_SAME_SIGNAL_SECONDS = 1.0


class Interruption:
    """Context in which four signals set a flag that the loop reads between steps.

    A later SIGINT ends the process at once with status 130; the checkpoints already written stay
    whole. A SIGINT within a second of the first signal counts as the same one: a launcher repeats
    the terminal's signal to processes that the terminal has reached too. Any other later signal
    changes nothing: schedulers send several, and the save under way must not be cut. A SIGHUP that
    is ignored already, as nohup makes it, stays so.

    Outside the main thread, where Python handles no signals, the context does nothing. In a run of
    several processes each has its own flag; `StopAgreement` lets them stop after the same step.
    """

    def __init__(self, *, soon: str = "saving and stopping after this step") -> None:
        """Begins without a signal.

        Args:
          soon: what the program does after a first signal, in words.
        """
        self._soon = soon
        self._received: int | None = None
        self._joined = 0
        self._received_at = 0.0
        self._previous: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether a signal has asked the run to stop."""
        return self.exit_status != 0

    @property
    def exit_status(self) -> int:
        """0 if no signal came, 130 after Ctrl-C, 75 after another."""
        return self._joined or (0 if self._received is None else _EXIT_STATUS[self._received])

    def join(self, exit_status: int) -> None:
        """Asks this process to stop with the exit status of another process of the run."""
        self._joined = exit_status

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            for number in _EXIT_STATUS:
                if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                    continue
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            # None stands for a handler that Python did not install and cannot restore.
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
    # A handler may run in the middle of a print, and a buffered stream cannot be entered twice.
    with contextlib.suppress(AttributeError, OSError, ValueError):  # no stderr, or none to write to
        os.write(sys.stderr.fileno(), f"\n{message}\n".encode())
