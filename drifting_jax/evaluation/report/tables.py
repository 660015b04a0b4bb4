"""Tables of metrics, in plain text and in HTML: a row for each metric, a column for each α."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from drifting_jax.evaluation.metrics.catalogue import METRICS, Metric
from drifting_jax.evaluation.metrics.records import MetricRecord
from drifting_jax.evaluation.report.summaries import (
    Row,
    Summary,
    baselines,
    best_rows,
    keys_in_order,
    summarize,
)

_ARROWS = {"lower": "↓", "higher": "↑", "near 1": "→1", "near real": "→real"}
WORDS = {
    "lower": "lower is better",
    "higher": "higher is better",
    "near 1": "nearer to 1 is better",
    "near real": "nearer to real is better",
}
_MOST_ALPHAS = 5  # side by side in a terminal
_TERMINAL_WIDTH = 100
_SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
_LINK = re.compile(r"https?://[^\s<>]*[^\s<>.,;)]|arXiv[: ](\d{4}\.\d{4,5})")


class Cell(NamedTuple):
    """One metric at one α in words: "2.310", "± 0.021" (or "(0.021)", or nothing), best or not."""

    value: str
    deviation: str
    best: bool
    finite: bool


class Line(NamedTuple):
    """One metric in words: a cell for each α (None: not measured), and the baseline.

    `key` is its key in `METRICS`, `name` the one to show, with a power of ten.
    """

    key: str
    name: str
    metric: Metric
    cells: list[Cell | None]
    baseline: str


def number(value: float) -> str:
    """Four significant digits: "2.310", "1234", "1.2e-7" below a thousandth; "NaN", "inf"."""
    if math.isnan(value):
        return "NaN"
    if value == 0 or math.isinf(value):
        return f"{value:g}"
    if not 1e-3 <= abs(value) < 1e5:
        mantissa, exponent = f"{value:.3e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{value:.{_decimals(value)}f}"


def alpha_words(alpha: float | None) -> str:
    """Heading of a column."""
    return "samples" if alpha is None else f"α = {alpha:g}"


def table_lines(records: Sequence[MetricRecord]) -> list[Line]:
    """A line for each metric, in the order of `METRICS`; small metrics all times one power of ten.

    If several α's are compared, the best are marked.

    Raises:
      ValueError: see `keys_in_order` and `summarize`.
    """
    rows, real = summarize(records), baselines(records)
    return [_line(name, rows, real.get(name)) for name in keys_in_order(records)]


def table_key(records: Sequence[MetricRecord], *, mark: str) -> list[str]:
    """What the numbers of a table are: a sentence for each kind that it has.

    Args:
      records: of the table.
      mark: what marks the best, such as "*".
    """
    summaries = [summary for row in summarize(records) for summary in row.metrics.values()]
    several = sorted({summary.seeds for summary in summaries if summary.seeds > 1})
    sentences = []
    if marks_best(table_lines(records)):
        ties = ", and each α that differs from it by at most the sum of both deviations"
        sentences.append(f"{mark}: the best α of a metric{ties if several else ''}.")
    if several:
        counts = " to ".join(str(count) for count in dict.fromkeys((several[0], several[-1])))
        sentences.append(f"±: sample standard deviation over {counts} seeds.")
    if any(summary.within is not None for summary in summaries):
        sentences.append("In brackets: standard deviation over subsets or splits of one set.")
    if baselines(records):
        sentences.append("real: the same metric of real images.")
    return sentences


def marks_best(lines: Sequence[Line]) -> bool:
    """Whether any cell is marked as the best of its line."""
    return any(cell is not None and cell.best for line in lines for cell in line.cells)


def metrics_table(records: Sequence[MetricRecord]) -> str:
    """Plain text for a terminal: metrics down, α across, in blocks of at most 5 α's.

    Raises:
      ValueError: an unknown metric, or two records of one metric, α and seed.
    """
    lines, rows = table_lines(records), summarize(records)
    if not lines:
        return "no metrics"
    for most in range(min(_MOST_ALPHAS, len(rows)), 0, -1):
        blocks = [_block(lines, rows, i, i + most) for i in range(0, len(rows), most)]
        if max(len(text) for block in blocks for text in block) <= _TERMINAL_WIDTH:
            break
    used = dict.fromkeys(line.metric.better for line in lines)
    arrows = "; ".join(f"{_ARROWS[better]} {WORDS[better]}" for better in used)
    words = [f"{arrows}.", *table_key(records, mark="*")]
    return "\n\n".join("\n".join(block) for block in [*blocks, words])


def baseline_table(records: Sequence[MetricRecord], *, num_samples: int) -> str:
    """Plain text for a terminal: the metrics of one set, each beside its baseline."""
    width = max(len(record.metric) for record in records)
    lines = [
        f"{num_samples} samples; 'real' is the same metric of real images",
        f"{'metric':<{width}}  {'samples':>10}  {'real':>10}  better",
    ]
    for record in records:
        better = METRICS[record.metric].better
        lines.append(
            f"{record.metric:<{width}}  {record.value:>10.4f}  {record.baseline:>10.4f}  {better}"
        )
    return "\n".join(lines)


def html_table(records: Sequence[MetricRecord]) -> str:
    """The table in HTML: the best of each metric bold, its definition beneath.

    Raises:
      ValueError: see `metrics_table`.
    """
    lines, rows = table_lines(records), summarize(records)
    real = any(line.baseline for line in lines)
    heads = [alpha_words(row.alpha) for row in rows] + ["real"] * real
    head = "".join(f'<th scope="col">{html.escape(words)}</th>' for words in heads)
    bodies = "".join(_html_body(line, len(heads), real=real) for line in lines)
    return (
        '<div class="scroll"><table>'
        f'<thead><tr><th scope="col">metric</th>{head}</tr></thead>{bodies}</table></div>'
    )


def linked(words: str) -> str:
    """Escaped words whose https://… and arXiv numbers are links."""

    def link(found: re.Match) -> str:
        address = f"https://arxiv.org/abs/{found[1]}" if found[1] else found[0]
        return f'<a href="{address}">{found[0]}</a>'

    return _LINK.sub(link, html.escape(words))


def _decimals(value: float) -> int:
    """Decimals that give a value four significant digits, after rounding."""
    return max(0, 3 - int(f"{value:.3e}".split("e")[1])) if value else 3


def _power(values: Sequence[float]) -> int:
    """Power of ten, in threes, that brings the largest value to 1 or more if it is under 0.01."""
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    return 3 * math.ceil(-math.log10(largest) / 3) if 0 < largest < 0.01 else 0


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:].rstrip(".") + "."


def _line(key: str, rows: Sequence[Row], baseline: float | None) -> Line:
    metric, summaries = METRICS[key], [row.metrics.get(key) for row in rows]
    power = _power([summary.mean for summary in summaries if summary])
    best = best_rows(rows, key) if sum(map(bool, summaries)) > 1 else []
    cells = [
        summary
        and Cell(
            number(summary.mean * 10.0**power),
            _deviation_words(summary, 10.0**power),
            row in best,
            math.isfinite(summary.mean),
        )
        for row, summary in zip(rows, summaries, strict=True)
    ]
    unit = f" ×10{str(power).translate(_SUPERSCRIPTS)}" if power else ""
    real = "" if baseline is None else number(baseline * 10.0**power)
    return Line(key, f"{metric.name}{unit}", metric, cells, real)


def _deviation_words(summary: Summary, factor: float) -> str:
    """A deviation with as many decimals as its mean, and at least one digit."""
    deviation = summary.within if summary.deviation is None else summary.deviation
    if deviation is None:
        return ""
    words, mean, deviation = number(deviation * factor), summary.mean * factor, deviation * factor
    if math.isfinite(mean) and math.isfinite(deviation) and 1e-3 <= abs(mean) < 1e5:
        fixed = f"{deviation:.{_decimals(mean)}f}"
        words = fixed if float(fixed) or not deviation else f"{deviation:.1g}"
    return f"({words})" if summary.deviation is None else f"± {words}"


def _block(lines: Sequence[Line], rows: Sequence[Row], first: int, last: int) -> list[str]:
    """Lines of text for the α's from `first` up to `last`."""
    columns = [["metric", *(f"{line.name} {_ARROWS[line.metric.better]}" for line in lines)]]
    for i, row in enumerate(rows[first:last], first):
        columns.append([f"{alpha_words(row.alpha)} ", *(_text(line.cells[i]) for line in lines)])
    if any(line.baseline for line in lines):
        columns.append(["real", *(line.baseline for line in lines)])
    widths = [max(map(len, column)) for column in columns]
    return [
        "  ".join(
            text.ljust(width) if j == 0 else text.rjust(width)
            for j, (text, width) in enumerate(zip(texts, widths, strict=True))
        ).rstrip()
        for texts in zip(*columns, strict=True)
    ]


def _text(cell: Cell | None) -> str:
    """A cell, with a place for the mark of the best."""
    if cell is None:
        return "- "
    return f"{cell.value} {cell.deviation}".strip() + ("*" if cell.best else " ")


def _html_body(line: Line, columns: int, *, real: bool) -> str:
    """The rows of one metric: its values, and what it is."""
    cells = "".join(map(_html_cell, line.cells)) + real * f'<td class="real">{line.baseline}</td>'
    metric = line.metric
    arrow = f"<span aria-hidden='true'>{_ARROWS[metric.better]}</span>"
    name = f"{html.escape(line.name)}&nbsp;{arrow}"
    source = f' <span class="source">{linked(metric.source)}</span>' if metric.source else ""
    definition = f"{WORDS[metric.better].capitalize()}. {html.escape(_sentence(metric.definition))}"
    return (
        f'<tbody><tr><th scope="row">{name}</th>{cells}</tr>'
        f'<tr class="definition"><td colspan="{columns + 1}"><div>{definition}{source}</div></td>'
        "</tr></tbody>"
    )


def _html_cell(cell: Cell | None) -> str:
    if cell is None:
        return '<td class="missing">–</td>'
    value = f"<strong>{cell.value}</strong>" if cell.best else cell.value
    kind = "best" if cell.best else "" if cell.finite else "broken"
    deviation = f"<small>{cell.deviation}</small>" if cell.deviation else ""
    return f'<td class="{kind}">{value}{deviation}</td>'
