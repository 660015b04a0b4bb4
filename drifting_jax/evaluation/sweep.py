"""Which α and which average of a run of small images is best, and what the seeds leave open.

Every average is sampled at every α and seed. All sets are compared with the same statistics of the
test split, and with the same noise. Prints a table for each metric; writes <workdir>/sweep.json.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from drifting_jax.config import streams
from drifting_jax.evaluation.metrics.records import MetricRecord
from drifting_jax.evaluation.metrics.small_images import distances_to_test, make_small_reference
from drifting_jax.evaluation.report.summaries import Row, Summary, best_rows, summarize
from drifting_jax.evaluation.report.tables import number
from drifting_jax.files import write_json
from drifting_jax.steps.generator import Generator
from drifting_jax.steps.sampling import class_major

FILE = "sweep.json"
_SEEDS = 3  # unless seeds are given: the fewest whose deviation says anything


class Cell(NamedTuple):
    """The samples of one average at one α.

    Attributes:
      average: its number in the sweep.
      row: the α, and the metrics over seeds.
      values: {metric: its value for each seed}.
    """

    average: int
    row: Row
    values: dict[str, list[float]]


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What a sweep has measured.

    Attributes:
      averages: which averages, as `Generator.average` has it; neighbours stand side by side.
      alphas: guidance scales, rising.
      cells: one for each average and α, those of one average together.
      baselines: {metric: its value for the training images}.
      alpha_range: smallest and largest α of the training.
    """

    averages: Sequence[str]
    alphas: Sequence[float]
    cells: Sequence[Cell]
    baselines: dict[str, float]
    alpha_range: tuple[float, float]


def sweep_run(
    averages: Sequence[Generator],
    *,
    workdir: Path,
    report: Callable[[str], None],
    seeds: Sequence[int] = (),
    cfg_scales: Sequence[float] = (),
    stopped: Callable[[], bool] = lambda: False,
) -> Sweep | None:
    """Measures every average at every α and seed; writes <workdir>/sweep.json.

    All processes sample; the main one writes.

    Args:
      averages: of one run, with its config; neighbours stand side by side.
      workdir: gets sweep.json.
      report: is called with each table as soon as it is ready.
      seeds: of the noise; empty for three, from the config's on.
      cfg_scales: every α; empty for the config's.
      stopped: asked before each set of samples whether to stop.

    Returns:
      What was measured; None if it was stopped.
    """
    run, config = averages[0], averages[0].config
    if config is None:
        raise ValueError("expected generators that were read from a run; found none with a config")
    seeds = seeds or range(config.seed, config.seed + _SEEDS)
    alphas = sorted(cfg_scales or config.eval.cfg_scales)
    classes = len(run.class_names)
    key = streams.stream_key(config, "classifier")
    measure = distances_to_test(make_small_reference(config.data, num_classes=classes, key=key))
    labels, indices = class_major(range(classes), config.eval.samples_per_class)
    cells, records = [], []
    for i, average in enumerate(averages):
        for alpha in alphas:
            own: list[MetricRecord] = []
            for seed in seeds:
                if stopped():
                    return None
                images = average.sample(labels, indices, seed=seed, cfg_scale=alpha)
                own += [
                    dataclasses.replace(each, alpha=alpha, seed=seed) for each in measure(images)
                ]
            cells.append(Cell(i, summarize(own)[0], _by_metric(own)))
            records += own
    baselines = {each.metric: float(each.baseline or 0.0) for each in records}
    found = Sweep(
        averages=[each.average for each in averages],
        alphas=alphas,
        cells=cells,
        baselines=baselines,
        alpha_range=(config.guidance.minimum, config.guidance.maximum),
    )
    for metric in baselines:
        report(f"{_table(found, metric, len(labels))}\n{verdict(found, metric)}")
    if jax.process_index() == 0:
        facts = {"step": run.step, "seeds": list(seeds), "num_samples": len(labels)}
        write_json(workdir / FILE, facts | to_json(found))
    return found


def neighbors(sweep: Sweep, cell: Cell) -> list[Cell]:
    """The cells at the next smaller and larger α, and of the next decays or the next widths."""
    at = sweep.alphas.index(cell.row.alpha)
    kinds = [words.split()[0] for words in sweep.averages]

    def is_near(other: Cell) -> bool:
        steps = abs(sweep.alphas.index(other.row.alpha) - at), abs(other.average - cell.average)
        return sum(steps) == 1 and kinds[other.average] == kinds[cell.average]

    return [other for other in sweep.cells if is_near(other)]


def best_cells(sweep: Sweep, metric: str) -> list[Cell]:
    """The best cell by a metric first, then those within its noise: see `best_rows`."""
    rows = best_rows([cell.row for cell in sweep.cells], metric)
    return [cell for row in rows for cell in sweep.cells if cell.row is row]


def verdict(sweep: Sweep, metric: str) -> str:
    """Lines that name the best cell and its neighbours, and say what the seeds leave open."""
    best, *ties = best_cells(sweep, metric)
    near = neighbors(sweep, best)
    tied = [cell for cell in near if cell in ties]
    real = number(sweep.baselines[metric])
    lines = [f"best: {_words(sweep, best, metric)}; real images {real}"]
    for cell in near:
        how = "within the noise of the best" if cell in tied else "worse"
        lines.append(f"  beside it: {_words(sweep, cell, metric)}, {how}")
    if best.row.metrics[metric].deviation is None:
        lines.append("one seed: the noise is unknown, and so is whether the best differs from them")
    elif tied:
        names = " and ".join(_name(sweep, cell) for cell in tied)
        lines.append(f"this minimum is within the noise of {names}: take any of them")
    elif near:
        lines.append("this minimum differs from its neighbours by more than the noise")
    if len(ties) > len(tied):
        lines.append(f"{len(ties)} of the other {len(sweep.cells) - 1} are within its noise")
    smallest, largest = sweep.alpha_range
    if best.row.alpha == sweep.alphas[0] > smallest:
        lines.append("it lies at the smallest α: a smaller one may be better still")
    if best.row.alpha == sweep.alphas[-1] < largest:
        lines.append("it lies at the largest α: a larger one may be better still")
    return "\n".join(lines)


def to_json(sweep: Sweep) -> dict[str, Any]:
    """The cells, and for each metric the baseline, the best cell and those within its noise."""

    def place(cell: Cell) -> dict[str, Any]:
        return {"average": sweep.averages[cell.average], "alpha": cell.row.alpha}

    best = {}
    for metric, baseline in sweep.baselines.items():
        first, *ties = best_cells(sweep, metric)
        within = [place(cell) for cell in ties]
        best[metric] = {"floor": baseline, "best": place(first), "within_noise": within}
    return {"metrics": best, "cells": [place(cell) | cell.values for cell in sweep.cells]}


def _by_metric(records: Sequence[MetricRecord]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for record in records:
        found.setdefault(record.metric, []).append(record.value)
    return found


def _table(sweep: Sweep, metric: str, num_samples: int) -> str:
    """Averages down, α across; * marks the best, ~ what is within its noise."""
    best, *ties = best_cells(sweep, metric)
    seeds = best.row.metrics[metric].seeds
    across = len(sweep.alphas)
    rows = [["", *(f"α = {alpha:g}" for alpha in sweep.alphas)]]
    for i, average in enumerate(sweep.averages):
        cells = sweep.cells[i * across : (i + 1) * across]
        marks = ["*" if cell is best else "~" if cell in ties else " " for cell in cells]
        values = [_value(cell.row.metrics[metric]) for cell in cells]
        rows.append([average, *(f"{x} {mark}" for x, mark in zip(values, marks, strict=True))])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    noise = "mean ± standard deviation over" if seeds > 1 else "of"
    head = f"{metric}, {noise} {seeds} seed{'s' * (seeds > 1)} of {num_samples} samples"
    return "\n".join([f"{head}; * the best, ~ within its noise", *lines])


def _words(sweep: Sweep, cell: Cell, metric: str) -> str:
    return f"{_name(sweep, cell)}: {_value(cell.row.metrics[metric])}"


def _name(sweep: Sweep, cell: Cell) -> str:
    return f"{sweep.averages[cell.average]}, α = {cell.row.alpha:g}"


def _value(summary: Summary) -> str:
    spread = "" if summary.deviation is None else f" ± {number(summary.deviation)}"
    return f"{number(summary.mean)}{spread}"
