"""Snapshots of a generator's averages during training, and the average of a width made of them."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from drifting_jax.config import ConfigDict
from drifting_jax.distributed import transfer
from drifting_jax.errors import UserError
from drifting_jax.steps.power_averages import Fit, fit_average
from drifting_jax.steps.state import width_name
from drifting_jax.training.loop import Hook, Moment
from drifting_jax.workdir import layout
from drifting_jax.workdir.snapshots import (
    read_averages,
    read_header,
    remove_from,
    snapshot_steps,
    write_snapshot,
)

_PARTS = 32  # of a run, with a snapshot after each, unless the config says otherwise
_LARGEST_ERROR = 0.05  # of a fit that counts as the wanted average
_TRIED = np.arange(10, 281, 5) / 1000  # widths, to tell which ones can be expressed


def snapshot_hooks(config: ConfigDict, *, workdir: Path, writes: bool) -> list[Hook]:
    """Returns the hooks that write snapshots; none for a run without `train.ema_widths`.

    A resume cuts the snapshots back to its checkpoint; the same steps then give the same files.

    Args:
      config: of the run.
      workdir: of the run.
      writes: whether this process writes; all fetch.
    """
    widths = tuple(config.train.ema_widths)
    if not widths:
        return []
    writer = _Writer(layout.snapshots(workdir), widths, writes)
    every = config.train.snapshot_every or max(config.train.num_steps // _PARTS, 1)
    return [Hook(1, writer.cut_back), Hook(every, writer.write)]


class _Writer:
    """Writes the snapshots of a run from wherever it goes on."""

    def __init__(self, folder: Path, widths: tuple[float, ...], writes: bool) -> None:
        self._folder, self._widths, self._writes = folder, widths, writes
        self._is_cut = False

    def cut_back(self, moment: Moment) -> None:
        """After the first step, removes what an earlier start has left of this step and later."""
        if self._writes and not self._is_cut:
            remove_from(self._folder, moment.step)
        self._is_cut = True

    def write(self, moment: Moment) -> None:
        """Writes the averages of this step."""
        state = moment.carry.state
        averages = transfer.fetch({width: state.ema[width_name(width)] for width in self._widths})
        updates = moment.step - int(transfer.fetch(state.skipped))
        if not self._writes or not updates:
            return
        try:
            write_snapshot(self._folder, step=moment.step, updates=updates, averages=averages)
        except OSError as error:  # the others make up for it
            logging.error("Could not write the snapshot of step %d: %s", moment.step, error)


@dataclasses.dataclass(frozen=True)
class Snapshots:
    """The averages that a run has kept up to a step.

    Attributes:
      folder: of the snapshots.
      steps: [n] of each average.
      widths: [n] of each average.
      times: [n] updates of each average.
    """

    folder: Path
    steps: tuple[int, ...]
    widths: tuple[float, ...]
    times: tuple[int, ...]

    def fit(self, width: float) -> Fit:
        """Returns the sum of the averages that is nearest to one of this width, at the last step.

        Raises:
          UserError: the averages cannot express this width.
        """
        found = self._fit(width) if 0 < width <= _TRIED[-1] else None
        if found is not None and found.error <= _LARGEST_ERROR:
            return found
        possible = self.expressible()
        off = "" if found is None else f", whose fit has an error of {found.error:.0%}"
        raise UserError(
            f"the snapshots up to step {self.steps[-1]} express averages of a width from "
            f"{possible[0]:g} to {possible[-1]:g}; found {width:g}{off}"
        )

    def expressible(self) -> list[float]:
        """Returns the widths, of a fixed grid and the kept ones, that have a fit of small error."""
        tried = sorted({*map(float, _TRIED), *self.widths})
        return [width for width in tried if self._fit(width).error <= _LARGEST_ERROR]

    def average(self, fit: Fit) -> dict[str, np.ndarray]:
        """Returns the parameters {path: float32} of a fit, summed in float64.

        Raises:
          UserError: a snapshot is damaged, or holds other parameters than the last.
        """
        sums: dict[str, Any] = {}
        wanted = dict(zip(zip(self.steps, self.widths, strict=True), fit.coefficients, strict=True))
        for step in sorted(set(self.steps), reverse=True):
            for width, params in read_averages(self.folder, step).items():
                if sums and params.keys() != sums.keys():
                    raise UserError(
                        f"the snapshot of step {step} in {self.folder} holds other parameters than "
                        "the last: delete it"
                    )
                for path, array in params.items():
                    term = wanted[step, width] * array.astype(np.float64)
                    sums[path] = sums.get(path, 0.0) + term
        return {path: total.astype(np.float32) for path, total in sums.items()}

    def _fit(self, width: float) -> Fit:
        return fit_average(self.widths, self.times, width=width, time=self.times[-1])


def open_snapshots(workdir: Path, *, step: int | None = None) -> Snapshots:
    """Reads which averages a run has kept, up to a step.

    Args:
      workdir: of the run.
      step: of the last snapshot that counts; None for the newest.

    Raises:
      UserError: there are none, or none of this step, or one is damaged.
    """
    folder = layout.snapshots(workdir)
    steps = snapshot_steps(folder)
    if not steps:
        raise UserError(
            f"{workdir} holds no snapshots of averages; a run with config.train.ema_widths=(0.05, "
            "0.1) writes them"
        )
    last = steps[-1] if step is None else step
    if last not in steps:
        raise UserError(f"there is no snapshot of step {last} in {folder}; there are {steps}")
    found = [
        (each, width, header.updates)
        for each in steps
        if each <= last
        for header in [read_header(folder, each)]
        for width in header.widths
    ]
    return Snapshots(folder, *zip(*found, strict=True))
