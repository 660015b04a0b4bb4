"""The processes of a run agree to stop after the same step, with the same exit status."""

import time

import jax
import numpy as np

from drifting_jax.distributed.agreement import largest
from drifting_jax.workdir.interruption import Interruption

# Processes ask each other about once per so many seconds, and at least once per so many steps.
_AGREE_SECONDS, _AGREE_STEPS = 1.0, 10


class StopAgreement:
    """Tells all processes, after the same step, whether any of them was asked to stop.

    They then end with the same exit status, because a launcher may look at any of them to decide
    whether to start the run again. They ask each other after every step; if steps are quick, once
    per several steps, at most ten.
    """

    def __init__(self, interruption: Interruption) -> None:
        """Takes this process's own interruption."""
        self._interruption = interruption
        self._asked_step = 0
        self._asked_at = 0.0
        self._next_step = 0

    def __call__(self, step: int = 0) -> bool:
        """Returns whether to stop. All processes must call it after the same steps.

        Args:
          step: steps done in a stage; 0 means: ask the other processes now.
        """
        if jax.process_count() == 1:
            return self._interruption.requested
        if step and not self._is_due(step):
            return False
        status = self._exchange(self._interruption.exit_status, step)
        if status:
            self._interruption.join(status)
        return bool(status)

    def _is_due(self, step: int) -> bool:
        # A step smaller than the last one belongs to another stage.
        return not self._asked_step < step < self._next_step

    def _exchange(self, status: int, step: int) -> int:
        """Returns the largest exit status of all processes; waits for them."""
        pace = np.inf  # seconds per step
        if 0 < self._asked_step < step:
            pace = (time.monotonic() - self._asked_at) / (step - self._asked_step)
        status, slowest = largest(np.array([status, pace], np.float32)).tolist()
        steps = _AGREE_SECONDS / max(slowest, _AGREE_SECONDS / _AGREE_STEPS)
        self._next_step = step + max(1, int(steps))
        self._asked_step, self._asked_at = step, time.monotonic()
        return int(status)
