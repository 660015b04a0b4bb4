"""Pictures for the page of an evaluation: uncurated samples, nearest training images."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from drifting_jax.data.class_names import title
from drifting_jax.data.records import open_records
from drifting_jax.errors import UserError
from drifting_jax.evaluation.extraction import fill_store, open_store
from drifting_jax.evaluation.features.extractors import Extractor
from drifting_jax.evaluation.features.image_sets import RecordImages, per_class
from drifting_jax.evaluation.metrics.neighbors import nearest_indices
from drifting_jax.evaluation.report.page import Neighbors, Picture
from drifting_jax.evaluation.setup import EvaluationSetup, SampleSet
from drifting_jax.workdir.image_files import image_grid

_GRID_CLASSES, _GRID_COLUMNS = 10, 8
_NEIGHBOR_CLASSES, _NEIGHBORS, _CANDIDATES = 8, 5, 2000
_LEAST_PIXELS = 400


def class_grids(sample_sets: Sequence[SampleSet]) -> list[Picture]:
    """The first images of some classes, a class a row, of the first seed at every α."""
    pictures, seen = [], set()
    for sample_set in sample_sets:
        alpha, images = sample_set.alpha, sample_set.images
        if alpha in seen:
            continue
        seen.add(alpha)
        if images.labels is None:
            columns, told = _GRID_COLUMNS, "in their order"
            rows = list(range(min(len(images), _GRID_CLASSES * _GRID_COLUMNS)))
        else:
            chosen = spread(images.labels, _GRID_CLASSES)
            # Equally many of each, so that a row is a class.
            columns = min(_GRID_COLUMNS, *(np.sum(images.labels == c) for c in chosen))
            rows = per_class(images.labels, chosen, columns)
            names = ", ".join(title(images.class_names[c]) for c in chosen)
            told = f"a class a row: {names}"
        pictures.append(
            Picture(
                title=f"alpha {alpha:g}" if alpha is not None else "The first images",
                caption=f"The first ones, none chosen; {told}.",
                image=image_grid(images.pick(rows), columns, least=_LEAST_PIXELS),
            )
        )
    return pictures


def spread(labels: np.ndarray, count: int) -> list[int]:
    """At most `count` of the classes that labels [n] have, evenly spread."""
    known = np.unique(labels)
    chosen = np.linspace(0, len(known) - 1, min(len(known), count)).round().astype(int)
    return [int(known[i]) for i in chosen]


def nearest_training_images(
    setup: EvaluationSetup, sample_set: SampleSet, extractor: Extractor, folder: Path
) -> Neighbors | None:
    """Samples of some classes beside the nearest training images of their class.

    Args:
      setup: devices and folders.
      sample_set: its first sample of each class is shown.
      extractor: distances are between its features.
      folder: of the training images, as config.data.path; they are cropped to the samples' size.

    Returns:
      None if it was stopped, and on processes other than the main one.

    Raises:
      UserError: there are no such images, or their classes are others.
    """
    records = open_records(folder, "train")
    images = sample_set.images
    labels = images.labels
    if labels is None or list(map(title, records.class_names)) != list(images.class_names):
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
        for c in spread(labels, _NEIGHBOR_CLASSES)
        if np.sum(records.labels == c)
    }
    rows = per_class(labels, list(by_class), 1)
    samples = images.pick(rows)
    apply = jax.jit(lambda v, x: extractor.apply(v, x)["features"])
    ours = np.asarray(apply(extractor.variables, samples))
    alone = dataclasses.replace(
        setup,
        extractors=[extractor],
        settings=dataclasses.replace(setup.settings, metrics=("fd_dinov2",)),
    )
    stores = {}
    for c, theirs in by_class.items():
        store = open_store(alone, theirs)
        if not fill_store(alone, theirs, store) or store is None:
            return None
        stores[c] = store
    # Equally many for each sample, so that they form columns.
    count = min(_NEIGHBORS, *(len(store.usable) for store in stores.values()))
    if not count:
        raise UserError(f"a class of {records.where} has no image that can be read")
    nearest, distances = [], []
    for (c, store), features in zip(stores.items(), ours, strict=True):
        found = nearest_indices(features[None], store.array("dinov2"), count=count)
        nearest.append(by_class[c].pick(store.usable[found.indices[0]]))
        distances.append(found.distances[0])
        if not setup.keep_features:
            store.delete()
    return Neighbors(
        samples=samples,
        nearest=np.stack(nearest),
        distances=np.stack(distances),
        words=f"the nearest of up to {_CANDIDATES} training images of the sample's class, by "
        "Euclidean distance of DINOv2 features.",
    )
