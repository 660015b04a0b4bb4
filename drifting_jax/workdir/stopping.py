"""When to stop: after the same step on all processes of a run, with the same exit status."""

import time

import jax
import numpy as np

from drifting_jax.distributed.agreement import largest
from drifting_jax.workdir.interruption import Interruption

# Processes ask each other about once in so many seconds, and at least once in so many steps.
_AGREE_SECONDS, _AGREE_STEPS = 1.0, 10


class StopAgreement:
    """Tells whether any process of the run was asked to stop.

    All processes hear of it after the same step and end with the same exit status, because a
    launcher may look at any of them to decide whether to start the run again. They ask each other
    after every step, or once in up to ten steps where steps are quick.
    """

    def __init__(self, interruption: Interruption) -> None:
        """Begins without a question asked; `interruption` is this process's own."""
        self._interruption = interruption
        self._asked_step = 0
        self._asked_at = 0.0
        self._next_step = 0

    def __call__(self, step: int = 0) -> bool:
        """Returns whether to stop. All processes must call it after the same steps.

        Args:
          step: steps done in a stage; 0 asks the other processes at once.
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
        return not self._asked_step < step < self._next_step  # a smaller step: another stage

    def _exchange(self, status: int, step: int) -> int:
        """Returns the largest exit status of all processes; waits for them."""
        pace = np.inf  # seconds a step
        if 0 < self._asked_step < step:
            pace = (time.monotonic() - self._asked_at) / (step - self._asked_step)
        status, slowest = largest(np.float32([status, pace])).tolist()
        steps = _AGREE_SECONDS / max(slowest, _AGREE_SECONDS / _AGREE_STEPS)
        self._next_step = step + max(1, int(steps))
        self._asked_step, self._asked_at = step, time.monotonic()
        return int(status)
