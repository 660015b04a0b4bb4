"""Pictures of a toy: its points during training, and fresh ones."""

import io
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from drifting_jax.data.points import sample_target
from drifting_jax.demonstration.choices import timing_line
from drifting_jax.demonstration.downloads import Files, new_files
from drifting_jax.drawing import new_figure, own_style
from drifting_jax.files import write_bytes, write_npz
from drifting_jax.training.toy import Toy

MOST_POINTS = 4096
_TARGET_POINTS = 1024
_REAL, _GENERATED = "#9aa5b1", "#d1495b"
_INCHES, _PIXELS_PER_INCH = 6.0, 100
_LEAST_ASPECT = 0.5


class PointsShow:
    """Draws the points of a toy beside those of its target; calls wait for each other."""

    def __init__(self, toy: Toy, frames: Mapping[int, np.ndarray]) -> None:
        """Takes a trained toy, and points [n, 2] of its training by step."""
        self.toy, self.frames, self.steps = toy, frames, sorted(frames)
        rng = np.random.default_rng(toy.config.seed)
        self._target = sample_target(toy.config.data.target, rng, _TARGET_POINTS)
        shown = [self._target, *(frames[step] for step in self.steps[:1])]
        sides = np.max([np.abs(points).max(axis=0) for points in shown], axis=0)
        self._half_sides = 1.25 * np.maximum(sides, _LEAST_ASPECT * sides.max())
        self._compiled: set[int] = set()
        self._lock = threading.Lock()

    def frame(self, number: int, folder: Path) -> tuple[str, Files]:
        """Returns a line about a picture of the training, and its files, in a new folder."""
        step = self.steps[number]
        with self._lock:
            return f"Step {step}", self._write(self.frames[step], f"step{step}", folder)

    def fresh(self, count: int, seed: int, average: float, folder: Path) -> tuple[str, Files]:
        """Returns a line about fresh points, and their files, in a new folder."""
        with self._lock:
            first = None
            if count not in self._compiled:
                _, first = self._timed(seed, count, average)
                self._compiled.add(count)
            points, seconds = self._timed(seed, count, average)
            files = self._write(points, f"points_seed{seed}", folder)
        return timing_line(count, seconds, first, noun="point"), files

    def _timed(self, seed: int, count: int, average: float) -> tuple[np.ndarray, float]:
        started = time.perf_counter()
        points = self.toy.samplers[average](seed, count)
        return points, time.perf_counter() - started

    def _write(self, points: np.ndarray, name: str, folder: Path) -> Files:
        files = new_files(folder, name)
        write_bytes(files.png, scatter_png(points, self._target, half_sides=self._half_sides))
        write_npz(files.npz, {"points": points})
        return files


def scatter_png(points: np.ndarray, target: np.ndarray, *, half_sides: np.ndarray) -> bytes:
    """Returns a PNG, 600 pixels wide, of generated points over real ones.

    Args:
      points: [n, 2] generated.
      target: [m, 2] real.
      half_sides: [2]; what is shown runs from minus these to these.
    """
    with own_style():
        size = _INCHES, _INCHES * half_sides[1] / half_sides[0]
        figure = new_figure(figsize=size, dpi=_PIXELS_PER_INCH, layout="constrained")
        axes = figure.subplots()
        for drawn, colour, name in ((target, _REAL, "real"), (points, _GENERATED, "generated")):
            axes.scatter(
                drawn[:, 0], drawn[:, 1], s=6, c=colour, alpha=0.55, linewidths=0, label=name
            )
        (x, y) = half_sides
        axes.set(xlim=(-x, x), ylim=(-y, y), aspect="equal", xticks=[], yticks=[])
        axes.legend(loc="upper left", fontsize=9, markerscale=2.5, framealpha=0.8)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
    return buffer.getvalue()
