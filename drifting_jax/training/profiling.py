"""Traces some steps of a run, for TensorBoard's profiler and xprof."""

from pathlib import Path

import jax

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
        if self._last is None and self._start <= moment.step < self._start + self._steps:
            jax.block_until_ready(moment.report)  # the trace begins with a step, not within one
            jax.profiler.start_trace(self._folder)
            self._last = self._start + self._steps
        elif self._last is not None and (moment.step >= self._last or moment.is_last):
            jax.block_until_ready(moment.report)
            self.close()

    def close(self) -> None:
        """Writes the trace that was begun, if there is one."""
        if self._last is not None:
            self._last = None
            jax.profiler.stop_trace()
            print(f"a trace for TensorBoard and xprof: {self._folder}", flush=True)
