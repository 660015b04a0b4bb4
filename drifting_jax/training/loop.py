"""The loop of every training: next batch, step, and every hook whose turn it is."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

from drifting_jax.training.program import Carry, Program, Report

PyTree = Any


@dataclasses.dataclass
class Moment:
    """The end of a step, as hooks see it.

    Attributes:
      step: steps done.
      batch: of this step.
      carry: what the next step will donate: hooks read it and keep nothing of it.
      report: of this step, still on the devices.
      is_last: whether the training is complete.
      stops: whether the loop ends after this step; a hook may set it, later hooks read it.
    """

    step: int
    batch: Mapping[str, jax.Array]
    carry: Carry
    report: Report
    is_last: bool
    stops: bool = False


@dataclasses.dataclass(frozen=True)
class Hook:
    """A function that is called after every `every` steps, and after the last one if `at_end`."""

    every: int
    function: Callable[[Moment], None]
    at_end: bool = True

    def is_due(self, moment: Moment) -> bool:
        """Whether it is this hook's turn."""
        return moment.step % self.every == 0 or (self.at_end and moment.is_last)


class BatchError(Exception):
    """The next batch could not be made, after `step` steps that left `carry`."""

    def __init__(self, step: int, carry: Carry) -> None:
        super().__init__(f"no batch for step {step + 1}")
        self.step, self.carry = step, carry


def run(
    program: Program,
    carry: Carry,
    frozen: PyTree,
    batches: Iterator[Mapping[str, jax.Array]],
    hooks: Sequence[Hook],
    *,
    start: int,
) -> tuple[Carry, bool]:
    """Runs a program from step `start` to its end, or until a hook stops it.

    The loop itself never waits for the devices.

    Args:
      program: the step and the number of steps.
      carry: what a step changes; donated.
      frozen: the frozen networks' variables.
      batches: the first one is that of step `start`.
      hooks: called in their order.
      start: steps already done.

    Returns:
      The carry, and whether the training is complete.

    Raises:
      BatchError: `batches` failed; the cause says why.
    """
    for step in range(start + 1, program.num_steps + 1):
        try:
            batch = next(batches)
        except Exception as error:
            raise BatchError(step - 1, carry) from error
        carry, report = program.step(carry, frozen, batch)
        moment = Moment(step, batch, carry, report, is_last=step == program.num_steps)
        for hook in hooks:
            if hook.is_due(moment):
                hook.function(moment)
        if moment.stops and not moment.is_last:
            return carry, False
    return carry, True
