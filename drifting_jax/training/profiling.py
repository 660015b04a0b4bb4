"""Traces some steps of a run, for TensorBoard's profiler and xprof."""

from collections.abc import Callable
from pathlib import Path

import jax
from absl import logging

from drifting_jax.errors import first_line
from drifting_jax.training.loop import Moment

FOLDER = "profile"  # in the workdir


class Profiler:
    """A hook that traces the `steps` steps after step `start`; a resume between them, the rest."""

    def __init__(self, folder: Path, *, start: int, steps: int) -> None:
        """Begins nothing yet; the trace goes to `folder`."""
        self._folder, self._start, self._steps = folder, start, steps
        self._last: int | None = None  # while it traces

    def __call__(self, moment: Moment) -> None:
        """Starts or ends the trace, if this is the step for it."""
        due = self._start <= moment.step < self._start + self._steps and not moment.is_last
        if self._last is None and due:
            jax.block_until_ready(moment.report)  # the trace begins with a step, not within one
            self._last = self._start + self._steps
            self._try(lambda: jax.profiler.start_trace(self._folder))
        elif self._last is not None and (moment.step >= self._last or moment.is_last):
            jax.block_until_ready(moment.report)
            self.close()

    def close(self) -> None:
        """Writes the trace that was begun, if there is one."""
        if self._last is not None:
            self._last = None
            self._try(jax.profiler.stop_trace)

    def _try(self, function: Callable[[], None]) -> None:
        """Calls a function of the profiler; a failure costs the trace, not the run."""
        try:
            function()
        except (OSError, RuntimeError) as error:
            logging.error("No trace in %s: %s", self._folder, first_line(error))
            self._last, self._steps = None, 0
