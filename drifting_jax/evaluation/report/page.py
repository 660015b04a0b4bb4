"""The report of an evaluation: one HTML page that needs no other file.

Styles and pictures are inside the page. It runs no scripts and loads nothing.
"""

from __future__ import annotations

import dataclasses
import html
import io
import os
from collections.abc import Mapping, Sequence

import numpy as np
from absl import logging
from PIL import Image

from drifting_jax.errors import first_line
from drifting_jax.evaluation.metrics.catalogue import METRICS
from drifting_jax.evaluation.metrics.records import MetricRecord
from drifting_jax.evaluation.report.curves import tradeoff_picture
from drifting_jax.evaluation.report.document import data_uri, protocol_section, write_document
from drifting_jax.evaluation.report.summaries import Row, best_rows, keys_in_order, summarize
from drifting_jax.evaluation.report.tables import (
    Cell,
    Line,
    alpha_words,
    html_table,
    linked,
    number,
    table_key,
    table_lines,
)

_HEADLINES = 4  # metrics in large type
_PICTURE_SIDE = 640  # pixels: small pictures are shown about this large
_WIDE = 1000  # pixels from which a picture takes the page's whole width
_TILE_SIDE = 112  # pixels: a neighbour is shown at most this large
_DENSITY = 2  # pixels of a screen for one pixel of the page


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image [h,w,1 or 3] uint8 with a heading and what it shows.

    Raises:
      ValueError: another shape or dtype.
    """

    title: str
    caption: str
    image: np.ndarray

    def __post_init__(self) -> None:
        _check_images(self.image[None], f"the picture {self.title!r}")


@dataclasses.dataclass(frozen=True)
class Neighbors:
    """Samples and the images that are nearest to them.

    Attributes:
      samples: [n,h,w,1 or 3] uint8.
      nearest: [n,k,h,w,1 or 3] uint8, nearest first.
      distances: [n,k].
      words: what was searched, and in which features.

    Raises:
      ValueError: shapes that do not fit, or another dtype of images.
    """

    samples: np.ndarray
    nearest: np.ndarray
    distances: np.ndarray
    words: str

    def __post_init__(self) -> None:
        _check_images(self.samples, "the samples")
        n, k = self.nearest.shape[:2]
        _check_images(self.nearest.reshape(n * k, *self.nearest.shape[2:]), "the neighbours")
        if n != len(self.samples) or self.distances.shape != (n, k):
            raise ValueError(
                "expected samples [n,h,w,c], nearest [n,k,h,w,c] and distances [n,k], found "
                f"{self.samples.shape}, {self.nearest.shape} and {self.distances.shape}"
            )


@dataclasses.dataclass(frozen=True)
class Report:
    """All that a page shows.

    Attributes:
      title: heading.
      protocol: how the metrics were made, in words by name.
      records: the metrics.
      pictures: class grids and the like, in order.
      neighbors: nearest training images, or None.
      notes: exclusions, warnings, what could not be computed and why.
    """

    title: str
    protocol: Mapping[str, str]
    records: Sequence[MetricRecord]
    pictures: Sequence[Picture]
    neighbors: Neighbors | None
    notes: Sequence[str]


def write_page(path: str | os.PathLike, report: Report, *, curve: tuple[str, str] | None) -> None:
    """Writes the page as one HTML file, whole or not at all.

    Args:
      path: of the file; its directory exists.
      report: what to show.
      curve: keys (x, y) of the trade-off over α to draw. The headline is at the best α by y, or
        without a curve by the first metric of the table.

    Raises:
      ValueError: an unknown metric, or two records of one metric, α and seed.
    """
    sections = [
        _headline(report, curve),
        _notes(report.notes),
        protocol_section(report.protocol),
        _metrics(report.records),
        _curve(report, curve),
        _pictures(report.pictures),
        _neighbors(report.neighbors),
    ]
    write_document(path, report.title, sections)


def _headline(report: Report, curve: tuple[str, str] | None) -> str:
    """The first metrics in large type, at the α that is best by one of them."""
    order = keys_in_order(report.records)
    first = [name for name in (curve or ())[::-1] if name in order]
    order = list(dict.fromkeys([*first, *order]))
    rows = summarize(report.records)
    best = best_rows(rows, order[0]) if order else []
    if not best:
        return '<p class="where">No metric came out finite.</p>' if order else ""
    column = rows.index(best[0])
    lines = {line.key: line for line in table_lines(report.records)}
    shown = [(lines[name], cell) for name in order if (cell := lines[name].cells[column])]
    tiles = "".join(_headline_tile(line, cell) for line, cell in shown[:_HEADLINES])
    where = _where(METRICS[order[0]].name, best, len(rows))
    return f'<p class="where">{where}</p><dl class="tiles">{tiles}</dl>\n'


def _headline_tile(line: Line, cell: Cell) -> str:
    real = f"<span>real {line.baseline}</span>" if line.baseline else ""
    return (
        f'<div class="tile"><dt>{html.escape(line.name)}</dt><dd><b>{cell.value}</b> '
        f"<small>{cell.deviation}</small>{real}</dd></div>"
    )


def _where(name: str, best: Sequence[Row], count: int) -> str:
    """At which of `count` α's the headline is, and which others tie with it by the metric."""
    first, *ties = (alpha_words(row.alpha) for row in best)
    if best[0].alpha is None and count == 1:
        return "The metrics"
    words = f"At {first}"
    if count > 1:
        words += f", the best of {count} by {name}"
    if ties:
        words += f" (a tie with {', '.join(ties)})"
    return html.escape(words)


def _notes(notes: Sequence[str]) -> str:
    if not notes:
        return ""
    entries = "".join(f"<li>{linked(note)}</li>" for note in notes)
    return (
        '<section class="notes" role="note"><h2>Exclusions and warnings</h2>'
        f"<ul>{entries}</ul></section>\n"
    )


def _metrics(records: Sequence[MetricRecord]) -> str:
    if not records:
        return ""
    key = table_key(records, mark="Bold")
    words = f'<p class="key">{" ".join(key)}</p>' if key else ""
    return f"<section><h2>Metrics</h2>{html_table(records)}{words}</section>\n"


def _curve(report: Report, curve: tuple[str, str] | None) -> str:
    if curve is None:
        return ""
    x, y = curve
    try:
        light, dark = (
            data_uri(tradeoff_picture(report.records, x=x, y=y, dark=dark))
            for dark in (False, True)
        )
    except ValueError:
        raise
    except Exception as error:  # the page is worth more than its curve
        logging.error("The page has no curve, which could not be drawn: %s", first_line(error))
        return ""
    words = html.escape(f"{METRICS[y].name} over {METRICS[x].name}")
    return (
        f'<section><h2>Trade-off over α</h2><figure class="curve"><picture>'
        f'<source media="screen and (prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" alt="Curve of {words}, a point for each α; the table has its values.">'
        f"</picture></figure></section>\n"
    )


def _pictures(pictures: Sequence[Picture]) -> str:
    if not pictures:
        return ""
    shown = "".join(map(_picture, pictures))
    return f'<section><h2>Samples</h2><div class="pictures">{shown}</div></section>\n'


def _picture(picture: Picture) -> str:
    height, width = picture.image.shape[:2]
    factor = max(1, _PICTURE_SIDE // max(height, width))
    kind = ' class="wide"' if width >= _WIDE else ""
    title, caption = html.escape(picture.title), html.escape(picture.caption)
    image = _image(picture.image, f"{title}: {caption}", factor)
    return f"<figure{kind}>{image}<figcaption><b>{title}</b> {caption}</figcaption></figure>"


def _neighbors(neighbors: Neighbors | None) -> str:
    if neighbors is None or not len(neighbors.samples):
        return ""
    n, k = neighbors.nearest.shape[:2]
    words = html.escape(neighbors.words[:1].upper() + neighbors.words[1:])
    groups = "".join(_neighbor_row(neighbors, i) for i in range(n))
    return (
        "<section><h2>Nearest training images</h2>"
        f"<p>{words} Each row has a sample on the left, then its {k} nearest, with their "
        f'distances beneath.</p><div class="neighbors" style="--tiles:{k + 1}">{groups}</div>'
        "</section>\n"
    )


def _neighbor_row(neighbors: Neighbors, i: int) -> str:
    factor = max(1, -(-_TILE_SIDE // max(neighbors.samples.shape[1:3])))
    tiles = [(neighbors.samples[i], f"#{i + 1}", f"Sample {i + 1}")]
    for j, image in enumerate(neighbors.nearest[i]):
        distance = number(float(neighbors.distances[i, j]))
        tiles.append((image, distance, f"Neighbour {j + 1} of sample {i + 1}, at {distance}"))
    return f'<div class="row">{"".join(_tile(*tile, factor) for tile in tiles)}</div>'


def _tile(image: np.ndarray, caption: str, alt: str, factor: int) -> str:
    return f"<figure>{_image(image, alt, factor)}<figcaption>{caption}</figcaption></figure>"


def _image(image: np.ndarray, alt: str, factor: int) -> str:
    """An <img> `factor` times as large; the caller has escaped its alt text.

    The file of an enlarged one repeats the pixels, so that squares stay even at every zoom.
    """
    height, width = (side * factor for side in image.shape[:2])
    repeats = _DENSITY * factor if factor > 1 else 1
    pixels = image.repeat(repeats, axis=0).repeat(repeats, axis=1)
    buffer = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[-1] == 1 else pixels).save(buffer, "PNG")
    return (
        f'<img src="{data_uri(buffer.getvalue())}" width="{width}" height="{height}" alt="{alt}">'
    )


def _check_images(images: np.ndarray, words: str) -> None:
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or images.dtype != np.uint8:
        raise ValueError(
            f"expected {words} as [h,w,1 or 3] uint8, found {images.shape[1:]} {images.dtype}"
        )
