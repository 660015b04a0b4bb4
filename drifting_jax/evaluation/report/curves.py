"""A picture of the trade-off between two metrics over α."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from drifting_jax.drawing import new_figure, own_style
from drifting_jax.evaluation.metrics.catalogue import METRICS
from drifting_jax.evaluation.metrics.records import MetricRecord
from drifting_jax.evaluation.report.summaries import Row, baselines, best_rows, summarize
from drifting_jax.evaluation.report.tables import WORDS, alpha_words

_LOG_SPAN = 20.0  # largest over smallest value, beyond which the y-axis is logarithmic
_SIZE, _DPI = (6.0, 4.3), 200
_LABEL_POINTS = 13.0  # from a point to its label
_LIGHT = {"paper": "#ffffff", "ink": "#22333b", "soft": "#6b7785", "curve": "#d1495b"}
_DARK = {"paper": "#1b2128", "ink": "#e3e8ed", "soft": "#93a0ad", "curve": "#ee7383"}


@own_style()
def tradeoff_picture(
    records: Sequence[MetricRecord], *, x: str, y: str, dark: bool = False
) -> bytes:
    """A PNG of metric y over metric x: a labelled point for each α, joined in the order of α.

    Error bars are standard deviations over seeds, dotted lines the baselines of real images; rings
    mark the best of several α's by y (see `best_rows`). Points that are not finite are left out and
    named. The y-axis is logarithmic if its values span more than a factor of 20.

    Args:
      records: of x and y; others are ignored.
      x: key of a metric.
      y: key of another.
      dark: for a dark page.

    Raises:
      ValueError: x or y is no metric, or two records have the same metric, α and seed.
    """
    if unknown := sorted({x, y} - METRICS.keys()):
        raise ValueError(f"no metric is called {', '.join(unknown)}")
    records = [record for record in records if record.metric in (x, y)]
    rows = summarize(records)
    drawn = [row for row in rows if _is_finite(row, x) and _is_finite(row, y)]
    colours = _DARK if dark else _LIGHT
    figure = new_figure(figsize=_SIZE, dpi=_DPI, layout="constrained", facecolor=colours["paper"])
    axes = figure.subplots()
    _style(axes, colours)
    axes.set_xlabel(f"{METRICS[x].name} ({WORDS[METRICS[x].better]})", fontsize=12)
    axes.set_ylabel(f"{METRICS[y].name} ({WORDS[METRICS[y].better]})", fontsize=12)
    if drawn:
        _draw_baselines(axes, baselines(records), x, y, colours)
        _draw_points(axes, drawn, x, y, colours)
        if len(drawn) > 1:
            best = best_rows(drawn, y)
            names = ", ".join(alpha_words(row.alpha) for row in best)
            _draw_best(axes, best, x, y, f"best {METRICS[y].name}: {names}", colours)
        if axes.get_legend_handles_labels()[1]:
            style = {"fontsize": 10.5, "frameon": False, "labelcolor": colours["ink"]}
            figure.legend(loc="outside upper left", ncols=2, **style)
    else:
        axes.set(xticks=[], yticks=[])
        axes.text(
            0.5,
            0.5,
            "no point to draw",
            color=colours["soft"],
            fontsize=12,
            ha="center",
            va="center",
            transform=axes.transAxes,
        )
    _name_left_out(axes, [row for row in rows if row not in drawn], colours)
    if drawn:
        figure.draw_without_rendering()  # labels are placed on the final layout
        _label_points(axes, drawn, x, y, colours)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _is_finite(row: Row, metric: str) -> bool:
    return metric in row.metrics and math.isfinite(row.metrics[metric].mean)


def _style(axes: Any, colours: Mapping[str, str]) -> None:
    axes.set_facecolor(colours["paper"])
    axes.tick_params(labelsize=11, colors=colours["soft"], labelcolor=colours["ink"])
    axes.ticklabel_format(useOffset=False)
    axes.grid(alpha=0.2, color=colours["soft"], lw=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(colours["soft"])
    axes.xaxis.label.set_color(colours["ink"])
    axes.yaxis.label.set_color(colours["ink"])
    axes.margins(0.17)


def _means(rows: Sequence[Row], metric: str) -> np.ndarray:
    return np.array([row.metrics[metric].mean for row in rows])


def _deviations(rows: Sequence[Row], metric: str) -> list[float] | None:
    """Lengths of the error bars; None if no α has several seeds."""
    found = [row.metrics[metric].deviation for row in rows]
    return [deviation or 0.0 for deviation in found] if any(found) else None


def _draw_baselines(
    axes: Any, real: Mapping[str, float], x: str, y: str, colours: Mapping[str, str]
) -> None:
    style = {"color": colours["soft"], "ls": ":", "lw": 1.4}
    lines = [
        draw(real[name], **style)
        for draw, name in ((axes.axvline, x), (axes.axhline, y))
        if name in real and math.isfinite(real[name])
    ]
    if lines:
        lines[0].set_label("real images")


def _draw_points(
    axes: Any, rows: Sequence[Row], x: str, y: str, colours: Mapping[str, str]
) -> None:
    values = _means(rows, y)
    axes.errorbar(
        _means(rows, x),
        values,
        xerr=_deviations(rows, x),
        yerr=_deviations(rows, y),
        color=colours["curve"],
        ecolor=colours["soft"],
        elinewidth=1.2,
        capsize=3,
        marker="o",
        ms=5.5,
        lw=1.6,
    )
    if values.min() > 0 and values.max() > _LOG_SPAN * values.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")


def _draw_best(
    axes: Any, best: Sequence[Row], x: str, y: str, words: str, colours: Mapping[str, str]
) -> None:
    style = {"facecolors": "none", "edgecolors": colours["ink"], "linewidths": 1.8}
    axes.scatter(_means(best, x), _means(best, y), s=150, zorder=4, label=words, **style)


def _name_left_out(axes: Any, rows: Sequence[Row], colours: Mapping[str, str]) -> None:
    if not rows:
        return
    names = ", ".join(alpha_words(row.alpha) for row in rows)
    axes.set_title(
        f"left out, not finite or not measured: {names}",
        fontsize=10,
        color=colours["ink"],
        loc="left",
        wrap=True,
    )


def _label_points(
    axes: Any, rows: Sequence[Row], x: str, y: str, colours: Mapping[str, str]
) -> None:
    """Labels each point on the outer side of the curve's bend."""
    from matplotlib.patheffects import withStroke

    points = np.stack([_means(rows, x), _means(rows, y)], axis=-1)
    directions = _outward(axes.transData.transform(points))
    for point, direction, row in zip(points, directions, rows, strict=True):
        axes.annotate(
            alpha_words(row.alpha) if len(rows) == 1 or row is rows[0] else f"{row.alpha:g}",
            point,
            _LABEL_POINTS * direction,
            textcoords="offset points",
            ha="center" if abs(direction[0]) < 0.7 else "left" if direction[0] > 0 else "right",
            va="center" if abs(direction[1]) < 0.5 else "bottom" if direction[1] > 0 else "top",
            fontsize=11,
            color=colours["ink"],
            path_effects=[withStroke(linewidth=3, foreground=colours["paper"])],
        )


def _outward(points: np.ndarray) -> np.ndarray:
    """Unit vectors [n,2] away from the neighbours of each point [n,2] of a path."""
    if len(points) == 1:
        return np.array([[0.0, 1.0]])
    before, after = np.roll(points, 1, axis=0), np.roll(points, -1, axis=0)
    before[0], after[-1] = points[1], points[-2]
    ways = [_unit(points - before), _unit(points - after)]
    bend = ways[0] + ways[1]
    across = (ways[0] - ways[1]) @ np.array([[0.0, -1.0], [1.0, 0.0]])
    straight = np.linalg.norm(bend, axis=1, keepdims=True) < 0.05
    return _unit(np.where(straight, across, bend))


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
