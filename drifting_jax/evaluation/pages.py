"""The page of an evaluation: table, curve, uncurated samples, nearest training images."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from drifting_jax.data.class_names import title
from drifting_jax.data.records import open_records
from drifting_jax.errors import UserError
from drifting_jax.evaluation.features.extractors import Extractor
from drifting_jax.evaluation.features.image_sets import RecordImages, per_class
from drifting_jax.evaluation.measurement import EvaluationSetup, SampleSet, fill_store, open_store
from drifting_jax.evaluation.metrics.catalogue import FIGURES
from drifting_jax.evaluation.metrics.neighbors import nearest_indices
from drifting_jax.evaluation.report import page as report
from drifting_jax.files import write_bytes
from drifting_jax.workdir.image_files import image_grid

REPORT_FILE, TABLE_FILE = "report.html", "figures.txt"
_GRID_CLASSES, _GRID_COLUMNS = 10, 8
_NEIGHBOR_CLASSES, _NEIGHBORS, _CANDIDATES = 8, 5, 2000
_LEAST_PIXELS = 400


def write_report(
    bench: EvaluationSetup,
    records: Sequence[Mapping[str, Any]],
    notes: Sequence[str],
    *,
    name: str,
    protocol: Mapping[str, str],
    pictures: Sequence[report.Picture],
    neighbors: report.Neighbors | None,
) -> str:
    """Writes figures.txt and report.html; returns the table, with the notes below it."""
    table = "\n".join([report.figures_table(records, FIGURES), *(f"note: {x}" for x in notes)])
    write_bytes(bench.out / TABLE_FILE, (table + "\n").encode())
    curve = ("inception_score", "fid")
    measured = {record["figure"] for record in records}
    several = len({record.get("alpha") for record in records}) > 1
    page = report.Report(
        title=name,
        protocol=protocol,
        records=records,
        info=FIGURES,
        pictures=pictures,
        neighbors=neighbors,
        notes=notes,
    )
    report.write_report(
        bench.out / REPORT_FILE, page, curve=curve if several and measured >= set(curve) else None
    )
    return table


def class_grids(subjects: Sequence[SampleSet]) -> list[report.Picture]:
    """The first images of some classes, a class a row, of the first seed at every α."""
    pictures, seen = [], set()
    for subject in subjects:
        alpha = subject.facts.get("alpha")
        if alpha in seen:
            continue
        seen.add(alpha)
        images = subject.images
        if images.labels is None:
            columns, told = _GRID_COLUMNS, "in their order"
            rows = list(range(min(len(images), _GRID_CLASSES * _GRID_COLUMNS)))
        else:
            chosen = _spread(images.labels, _GRID_CLASSES)
            # As many of each, so that a row is a class.
            columns = min(_GRID_COLUMNS, *(np.sum(images.labels == c) for c in chosen))
            rows = per_class(images.labels, chosen, columns)
            names = ", ".join(title(images.class_names[c]) for c in chosen)
            told = f"a class a row: {names}"
        pictures.append(
            report.Picture(
                title=f"alpha {alpha:g}" if alpha is not None else "The first images",
                caption=f"The first ones, none chosen; {told}.",
                image=image_grid(images.pick(rows), columns, least=_LEAST_PIXELS),
            )
        )
    return pictures


def _spread(labels: np.ndarray, count: int) -> list[int]:
    """Some of the classes that there are, evenly spread."""
    known = np.unique(labels)
    chosen = np.linspace(0, len(known) - 1, min(len(known), count)).round().astype(int)
    return [int(known[i]) for i in chosen]


def nearest_training_images(
    bench: EvaluationSetup, subject: SampleSet, extractor: Extractor, folder: Path
) -> report.Neighbors | None:
    """Samples of some classes beside the training images of their class that are nearest.

    Args:
      bench: devices and folders.
      subject: whose first sample of each class is looked at.
      extractor: whose features distances are in.
      folder: of the training images, as config.data.path; they are cut to the samples' size.

    Returns:
      None where it was stopped.

    Raises:
      UserError: there are no such images, or their classes are others.
    """
    records = open_records(folder, "train")
    images = subject.images
    if list(map(title, records.class_names)) != list(images.class_names):
        raise UserError(
            f"{records.where} has other classes than the samples: it is not what they were "
            "trained on"
        )
    by_class = {
        c: RecordImages(
            records,
            size=images.pick([0]).shape[1],
            indices=np.flatnonzero(records.labels == c)[:_CANDIDATES],
        )
        for c in _spread(images.labels, _NEIGHBOR_CLASSES)
        if np.sum(records.labels == c)
    }
    rows = per_class(images.labels, list(by_class), 1)
    samples = images.pick(rows)
    apply = jax.jit(lambda v, x: extractor.apply(v, x)["features"])
    ours = np.asarray(apply(extractor.variables, samples))
    alone = dataclasses.replace(
        bench,
        extractors=[extractor],
        settings=dataclasses.replace(bench.settings, figures=("fd_dinov2",)),
    )
    stores = {}
    for c, theirs in by_class.items():
        stores[c] = open_store(alone, theirs)
        if not fill_store(alone, theirs, stores[c]):
            return None
    # As many of each sample, so that they can stand below each other.
    count = min(_NEIGHBORS, *(len(store.usable) for store in stores.values()))
    if not count:
        raise UserError(f"a class of {records.where} has no image that can be read")
    nearest, distances = [], []
    for (c, store), features in zip(stores.items(), ours, strict=True):
        found = nearest_indices(features[None], store.array("dinov2"), count=count)
        nearest.append(by_class[c].pick(store.usable[found.indices[0]]))
        distances.append(found.distances[0])
        if not bench.keep_features:
            store.delete()
    return report.Neighbors(
        samples=samples,
        nearest=np.stack(nearest),
        distances=np.stack(distances),
        words=f"the nearest of up to {_CANDIDATES} training images of the sample's class, by "
        "Euclidean distance of DINOv2 features.",
    )
