"""Tables of figures, in plain text and in HTML: a row per figure, a column per α."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from drifting_jax.evaluation.report.summaries import (
    FigureInfo,
    Record,
    Row,
    Summary,
    best_rows,
    floors,
    in_order,
    summarize,
)

_ARROWS = {"lower": "↓", "higher": "↑", "near 1": "→1"}
WORDS = {
    "lower": "lower is better",
    "higher": "higher is better",
    "near 1": "nearer to 1 is better",
}
_MOST_ALPHAS = 5  # side by side in a terminal
_TERMINAL_WIDTH = 100
_SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
_LINK = re.compile(r"https?://[^\s<>]*[^\s<>.,;)]|arXiv[: ](\d{4}\.\d{4,5})")


class Cell(NamedTuple):
    """One figure at one α as words: "2.310", "± 0.021" (or "(0.021)", or nothing), best or not."""

    value: str
    deviation: str
    best: bool
    finite: bool


class Line(NamedTuple):
    """One figure as words: a cell per row of the summary (None: not measured), and the floor.

    `key` is its name in the records, `name` the one to show, with the power of ten.
    """

    key: str
    name: str
    info: FigureInfo
    cells: list[Cell | None]
    floor: str


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


def table_lines(records: Sequence[Record], info: Mapping[str, FigureInfo]) -> list[Line]:
    """A line per figure, in the order of `info`; small figures all times one power of ten.

    Where several α's are compared the best is marked.

    Raises:
      ValueError: see `in_order` and `summarize`.
    """
    rows, real = summarize(records), floors(records)
    return [_line(name, info[name], rows, real.get(name)) for name in in_order(records, info)]


def table_key(records: Sequence[Record]) -> list[str]:
    """What the numbers of a table are: a sentence for each kind that it has."""
    summaries = [summary for row in summarize(records) for summary in row.figures.values()]
    several = sorted({summary.seeds for summary in summaries if summary.seeds > 1})
    sentences = []
    if several:
        counts = " to ".join(str(count) for count in dict.fromkeys((several[0], several[-1])))
        sentences.append(f"±: sample standard deviation over {counts} seeds.")
    if any(summary.within is not None for summary in summaries):
        sentences.append("In brackets: standard deviation over subsets or splits of one set.")
    if floors(records):
        sentences.append("real: the same figure of real images.")
    return sentences


def marks_best(lines: Sequence[Line]) -> bool:
    """Whether any cell is marked as the best of its line."""
    return any(cell is not None and cell.best for line in lines for cell in line.cells)


def figures_table(records: Sequence[Record], info: Mapping[str, FigureInfo]) -> str:
    """Plain text for a terminal: figures down, α across, in blocks of at most 5 α's.

    Raises:
      ValueError: a figure without its info, or two records of one figure, α and seed.
    """
    lines, rows = table_lines(records, info), summarize(records)
    if not lines:
        return "no figures"
    for most in range(min(_MOST_ALPHAS, len(rows)), 0, -1):
        blocks = [_block(lines, rows, i, i + most) for i in range(0, len(rows), most)]
        if max(len(text) for block in blocks for text in block) <= _TERMINAL_WIDTH:
            break
    used = dict.fromkeys(line.info.better for line in lines)
    key = [f"{_ARROWS[better]} {WORDS[better]}" for better in used]
    if marks_best(lines):
        key.append("* best α")
    words = ["; ".join(key) + ".", *table_key(records)]
    return "\n\n".join("\n".join(block) for block in [*blocks, words])


def html_table(records: Sequence[Record], info: Mapping[str, FigureInfo]) -> str:
    """The same as an HTML table: the best of each figure bold, its definition beneath.

    Raises:
      ValueError: see `figures_table`.
    """
    lines, rows = table_lines(records, info), summarize(records)
    real = any(line.floor for line in lines)
    heads = [alpha_words(row.alpha) for row in rows] + ["real"] * real
    head = "".join(f'<th scope="col">{html.escape(words)}</th>' for words in heads)
    bodies = "".join(_html_body(line, len(heads), real=real) for line in lines)
    return (
        '<div class="scroll"><table>'
        f'<thead><tr><th scope="col">figure</th>{head}</tr></thead>{bodies}</table></div>'
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


def _line(name: str, info: FigureInfo, rows: Sequence[Row], floor: float | None) -> Line:
    summaries = [row.figures.get(name) for row in rows]
    power = _power([summary.mean for summary in summaries if summary])
    best = best_rows(rows, name, info.better) if sum(map(bool, summaries)) > 1 else []
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
    real = "" if floor is None else number(floor * 10.0**power)
    return Line(name, f"{info.name}{unit}", info, cells, real)


def _deviation_words(summary: Summary, factor: float) -> str:
    """To the decimals of its mean, and at least one digit."""
    deviation = summary.within if summary.deviation is None else summary.deviation
    if deviation is None:
        return ""
    words, mean, deviation = number(deviation * factor), summary.mean * factor, deviation * factor
    if math.isfinite(mean) and math.isfinite(deviation) and 1e-3 <= abs(mean) < 1e5:
        fixed = f"{deviation:.{_decimals(mean)}f}"
        words = fixed if float(fixed) or not deviation else f"{deviation:.1g}"
    return f"({words})" if summary.deviation is None else f"± {words}"


def _block(lines: Sequence[Line], rows: Sequence[Row], first: int, last: int) -> list[str]:
    """Lines of text of the α's from `first` up to `last`."""
    columns = [["figure", *(f"{line.name} {_ARROWS[line.info.better]}" for line in lines)]]
    for i, row in enumerate(rows[first:last], first):
        columns.append([f"{alpha_words(row.alpha)} ", *(_text(line.cells[i]) for line in lines)])
    if any(line.floor for line in lines):
        columns.append(["real", *(line.floor for line in lines)])
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
    """The rows of one figure: its values, and what it is."""
    cells = "".join(map(_html_cell, line.cells)) + real * f'<td class="real">{line.floor}</td>'
    name = (
        f"{html.escape(line.name)}&nbsp;<span aria-hidden='true'>{_ARROWS[line.info.better]}</span>"
    )
    source = f' <span class="source">{linked(line.info.source)}</span>' if line.info.source else ""
    definition = (
        f"{WORDS[line.info.better].capitalize()}. {html.escape(_sentence(line.info.definition))}"
    )
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
