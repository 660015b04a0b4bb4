"""Draws the raw drift and the samples over training, and for a toy the animation and the field.

A picture that cannot be drawn or written never ends a run: an error is logged, and it is left out.
"""

import contextlib
import dataclasses
import functools
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import logging
from PIL import Image, ImageDraw

from drifting_jax.config.streams import root_key
from drifting_jax.drawing import import_matplotlib, new_figure, own_style
from drifting_jax.errors import first_line
from drifting_jax.files import write_bytes
from drifting_jax.method import losses
from drifting_jax.method.fields.options import DriftOptions
from drifting_jax.method.fields.table import field_named
from drifting_jax.method.target_sets import distance_sums, distances, make_sets

_REAL, _GENERATED, _ARROW = "#9aa5b1", "#d1495b", "#22333b"
_LAST_FRAME_MILLISECONDS = 2500
_FRAME_MILLISECONDS = 80
_MOST_FRAMES, _SLOWEST_MILLISECONDS = 60, 500  # of samples over training
_MOST_PIXELS, _MOST_BYTES = 600 * 600, 4_000_000
_CAPTION = 16  # pixels above the samples
_GRID = 22  # arrows along the longer side
_LEAST_ASPECT = 0.5
_SAMPLE_ARROWS = 150  # where they stand at generated samples


def _draws(function: Callable[..., None]) -> Callable[..., None]:
    """Wraps a function (path, …) that writes a picture."""

    @functools.wraps(function)
    def attempt(path: Path, *args: Any, **kwargs: Any) -> None:
        try:
            with own_style():
                function(path, *args, **kwargs)
        except Exception as error:  # whatever it is, the run is worth more
            logging.error("Could not draw %s: %s", path, first_line(error))

    return attempt


def _limits(target: np.ndarray, frames: Mapping[int, np.ndarray]) -> np.ndarray:
    """Returns half the sides [2] of a rectangle around 0 that holds the target and the first q."""
    first = frames[min(frames)]
    sides = np.maximum(np.abs(target).max(axis=0), np.abs(first).max(axis=0))
    return 1.25 * np.maximum(sides, _LEAST_ASPECT * sides.max())


def _scatter(axes: Any, points: np.ndarray, colour: str, label: str, limits: np.ndarray) -> None:
    axes.scatter(*points.T, s=5, c=colour, alpha=0.55, linewidths=0, label=label)
    (x, y) = limits
    axes.set(xlim=(-x, x), ylim=(-y, y), aspect="equal", xticks=[], yticks=[])


@_draws
def write_animation(path: Path, frames: Mapping[int, np.ndarray], target: np.ndarray) -> None:
    """Writes an animated GIF of q drifting to p.

    Args:
      path: GIF file.
      frames: generated points [n, 2] by step.
      target: real points [m, 2].
    """
    limits = _limits(target, frames)
    height = 4.4 * limits[1] / limits[0] + 0.3
    images = []
    for step in sorted(frames):
        figure = new_figure(figsize=(4.4, height), dpi=90, layout="constrained")
        axes = figure.subplots()
        _scatter(axes, target, _REAL, "real", limits)
        _scatter(axes, frames[step], _GENERATED, "generated", limits)
        outside = float(np.mean(np.any(np.abs(frames[step]) > limits, axis=1)))
        note = f", {outside:.0%} outside" if outside > 0.005 else ""
        axes.set_title(f"step {step}{note}", fontsize=11)
        axes.legend(loc="upper left", fontsize=8, markerscale=2.5, framealpha=0.8)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        images.append(Image.open(buffer).convert("RGB").quantize(64))
    write_bytes(path, _gif(images, _FRAME_MILLISECONDS))


def _gif(images: Sequence[Image.Image], milliseconds: int) -> bytes:
    """Returns a GIF that shows each image for so long, and the last one longer, for ever."""
    durations = [milliseconds] * (len(images) - 1) + [_LAST_FRAME_MILLISECONDS]
    buffer = io.BytesIO()
    images[0].save(
        buffer,
        format="GIF",
        save_all=True,
        append_images=images[1:],
        duration=durations,
        loop=0,
        optimize=True,
    )
    return buffer.getvalue()


@_draws
def write_training(path: Path, folder: Path) -> None:
    """Writes an animated GIF of a generator's samples over training: the same noise and labels.

    It has at most 60 frames and 4 MB: frames are left out evenly, and large ones made smaller.

    Args:
      path: GIF file; not written unless there are two frames.
      folder: of the grids, generator_samples_<step>.png. A grid that cannot be read, or that has
        another shape than the newest, is left out.
    """
    frames = _training_frames(folder)
    while len(frames) > 1:
        pace = _MOST_FRAMES * _FRAME_MILLISECONDS // len(frames)
        data = _gif(frames, min(pace, _SLOWEST_MILLISECONDS))
        if len(data) <= _MOST_BYTES:
            write_bytes(path, data)
            return
        frames = [*frames[:-1:2], frames[-1]] if len(frames) > 2 else []


def _training_frames(folder: Path) -> list[Image.Image]:
    """Returns at most 60 frames in the order of their steps, all of one size and mode."""
    steps = {path.stem.rpartition("_")[2]: path for path in folder.glob("generator_samples_*.png")}
    ordered = sorted((int(step), path) for step, path in steps.items() if step.isdecimal())
    chosen = np.rint(np.linspace(0, len(ordered) - 1, min(len(ordered), _MOST_FRAMES)))
    found = []
    for step, path in (ordered[int(i)] for i in chosen):
        with contextlib.suppress(OSError, ValueError, SyntaxError):  # cut short, or no PNG
            grid = Image.open(path)
            found.append(((grid.size, grid.mode), _captioned(grid, f"step {step}")))
    return [frame for shape, frame in found if shape == found[-1][0]]


def _captioned(grid: Image.Image, caption: str) -> Image.Image:
    """Returns a frame: the grid, made smaller if it is large, with a line of text above it."""
    grid = grid.convert("L" if grid.mode == "L" else "RGB")
    factor = min(1.0, (_MOST_PIXELS / (grid.width * grid.height)) ** 0.5)
    if factor < 1:
        width, height = max(1, int(grid.width * factor)), max(1, int(grid.height * factor))
        grid = grid.resize((width, height), Image.Resampling.BOX)
    frame = Image.new(grid.mode, (grid.width, grid.height + _CAPTION))
    frame.paste(grid, (0, _CAPTION))
    ImageDraw.Draw(frame).text((4, 2), caption, fill="white")
    return frame if frame.mode == "L" else frame.quantize(256)


@_draws
def write_field(
    path: Path,
    frames: Mapping[int, np.ndarray],
    target: np.ndarray,
    *,
    options: DriftOptions,
) -> None:
    """Draws the run's field V on a grid at one τ, at the start, on the way and at the end.

    The largest of `options.temperatures` is taken, in units of the mean distance S between the
    points of each frame and their targets, as in the loss. Arrows are scaled per panel; the title
    gives the length of the largest.
    """
    steps = sorted(frames)
    chosen = [steps[0], steps[len(steps) // 3], steps[-1]]
    limits = _limits(target, frames)
    height = 4 * limits[1] / limits[0] + 0.4
    figure = new_figure(figsize=(12, height), dpi=100, layout="constrained")
    counts = np.rint(_GRID * limits / limits.max()).astype(int)
    lines = (np.linspace(-limit, limit, n) for limit, n in zip(limits, counts, strict=True))
    grid = np.stack(np.meshgrid(*lines), axis=-1).reshape(-1, 2)
    for axes, step in zip(figure.subplots(1, 3), chosen, strict=True):
        places, v = _field_at(grid, frames[step], target, options)
        _scatter(axes, target, _REAL, "real", limits)
        _scatter(axes, frames[step], _GENERATED, "generated", limits)
        length = np.linalg.norm(v, axis=1, keepdims=True)
        longest = max(float(length.max()), 1e-12)
        # Square root of the length: the field spans decades, and its direction matters everywhere.
        arrows = v / np.maximum(length, 1e-12) * np.sqrt(length / longest)
        axes.quiver(*places.T, *arrows.T, color=_ARROW, scale=_GRID, width=0.004, alpha=0.85)
        axes.set_title(f"step {step}: largest |V| {longest:.2g}", fontsize=10)
    figure.axes[0].legend(loc="upper left", fontsize=8, markerscale=2.5, framealpha=0.8)
    figure.savefig(path)


def _field_at(
    grid: np.ndarray, generated: np.ndarray, real: np.ndarray, options: DriftOptions
) -> tuple[np.ndarray, np.ndarray]:
    """Returns places [n, 2] and V [n, 2] there: the points of a grid, which are no targets.

    Where V of a sample depends on the other samples the places are generated samples.
    """
    field = field_named(options.field)
    itself = next(kind for kind in field.negatives if kind != "fresh")
    options = dataclasses.replace(
        options,
        temperatures=(max(options.temperatures),),
        negatives=itself,
        lookahead=0,
        lookahead_stride=1.0,
        annealed=False,
    )
    probes, points, targets = (
        jnp.asarray(a, jnp.float32)[None, :, None] for a in (grid, generated, real)
    )
    sets = make_sets(points, targets, options=options, key=root_key(0))
    scale = distance_sums(distances(sets), sets).distance_scale
    places, most = generated, _SAMPLE_ARROWS
    if field.is_pointwise:  # the points repel the grid as a second batch would
        places, most = grid, len(grid)
        options = dataclasses.replace(options, negatives="fresh")
        sets = make_sets(probes, targets, fresh=points, options=options)
    drifts, _ = losses.all_drifts(sets, distances(sets), scale, options)  # in units of S/√2
    v = np.asarray(drifts[0, 0, 0] * scale[0] / 2**0.5)
    return places[:most], v[:most]


@_draws
def write_drift(path: Path, records: Sequence[Mapping[str, Any]], drifts: Sequence[str]) -> None:
    """Draws the raw drift per τ and the diversity over training, beside the loss.

    The loss hardly changes, even in a run that goes well.

    Args:
      path: PNG file.
      records: lines of metrics.jsonl of one stage.
      drifts: names of the drifts, as `fields.table.drift_names` gives them.
    """
    figure = new_figure(figsize=(10, 3.8), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    colours = import_matplotlib().colormaps["viridis"](np.linspace(0.1, 0.8, len(drifts)))
    for drift, colour in zip(drifts, colours, strict=True):
        label = f"raw drift², τ = {drift}"
        left.plot(*_series(records, f"drift/mean/{drift}"), color=colour, label=label)
    left.plot(*_series(records, "loss"), color=_REAL, ls="--", label="loss")
    left.set(xlabel="step", yscale="log", ylabel="mean square")
    right.axhline(1, color=_REAL, lw=0.8)
    right.plot(*_series(records, "diversity/mean"), color=_GENERATED, label="diversity")
    highest = max([1.0, *_series(records, "diversity/mean")[1]])
    right.set(xlabel="step", ylim=(0, 1.1 * highest))
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8)
    figure.savefig(path)


def _series(records: Sequence[Mapping[str, Any]], name: str) -> tuple[list[int], list[float]]:
    """Returns the steps and values of the lines that have a scalar of this name."""
    having = [record for record in records if name in record]
    return [record["step"] for record in having], [record[name] for record in having]
