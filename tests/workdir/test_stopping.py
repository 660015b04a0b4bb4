"""How often the processes of a run ask each other whether to stop."""

import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from drifting_jax.workdir.stopping import StopAgreement


def asked(seconds: float, others: float = 0.0) -> list[int]:
    """Returns after which of 30 steps the processes ask each other, if a step takes so long.

    Args:
      seconds: time of a step in this process.
      others: the same in the other process, if longer.
    """
    clock, found, asked_at = [100.0], [], []

    def allgather(own):
        asked_at.append(clock[0])
        return np.stack([own, np.float32([0, max(own[1], others)])])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "process_count", lambda: 2)
        patch.setattr(time, "monotonic", lambda: clock[0])
        patch.setattr(multihost_utils, "process_allgather", allgather)
        stops = StopAgreement(SimpleNamespace(exit_status=0))
        for step in range(1, 31):
            clock[0] += seconds
            asked_at.clear()
            assert not stops(step)
            if asked_at:
                found.append(step)
    return found


def test_processes_ask_each_other_every_step_unless_steps_are_quick():
    assert asked(5.0) == list(range(1, 31))
    assert asked(0.25) == [1, 2, *range(6, 31, 4)]
    assert asked(0.001) == [1, 2, 12, 22]
    assert asked(0.001, others=5.0) == list(range(1, 31))
