"""Samples of a run on a folder of images beside their nearest training images.

It needs no downloaded network: neighbours are found in features that the caller gives, and copies
by the distance of pixels. A training image that is copied is at a distance of about 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jax.sharding import Mesh

from drifting_jax.data.records import open_records
from drifting_jax.distributed import transfer
from drifting_jax.errors import UserError
from drifting_jax.evaluation.features.image_sets import RecordImages, per_class
from drifting_jax.evaluation.metrics.neighbors import nearest_distances, nearest_indices
from drifting_jax.evaluation.pictures import class_grids, spread
from drifting_jax.evaluation.report.page import Neighbors, Report, write_page
from drifting_jax.evaluation.setup import generated_sample_sets
from drifting_jax.steps.generator import Generator
from drifting_jax.workdir.image_files import image_grid, save_png

Features = Callable[[np.ndarray], np.ndarray]

PAGE, PICTURE = "report.html", "samples/nearest.png"
_CLASSES, _SHOWN, _NEIGHBORS = 8, 2, 5
_MEASURED = 32  # samples of each class whose pixels are compared
_CANDIDATES = 2000  # training images of each class, at most
_NUMBERS = 10**8  # of all their pixels, at most
_BATCH, _LEAST_PIXELS = 64, 640


@dataclasses.dataclass(frozen=True)
class PixelDistances:
    """Median distances to the nearest training image of the same class, in pixels of [-1, 1].

    Attributes:
      samples: of samples.
      real: of training images, to the nearest other one.
    """

    samples: float
    real: float

    @property
    def words(self) -> str:
        """What they say, in a line."""
        found = (
            f"median distance of pixels to the nearest training image: {self.samples:.2f} from "
            f"samples, {self.real:.2f} from other training images"
        )
        if not self.real > 0:  # most images are there twice, or each class has only one
            return found
        return f"{found}; ratio {self.samples / self.real:.2f}, far below 1 if samples are copies"


def write_nearest_page(
    run: Generator,
    *,
    workdir: Path,
    folder: Path,
    features: Features,
    words: str,
) -> PixelDistances:
    """Writes report.html and samples/nearest.png into the workdir of a run.

    A single process calls it.

    Args:
      run: a generator of pixels with its config, see `load_run`.
      workdir: of the run.
      folder: of the training images, as config.data.path.
      features: images [n, h, w, 3] uint8 -> [n, d].
      words: which features they are.

    Raises:
      UserError: the folder has other classes than the run, or a class without a readable image.
    """
    config = run.config
    assert config is not None  # it is of a run
    size, flip = config.data.image_size, config.data.flip
    most = max(10, min(_CANDIDATES, _NUMBERS // (3 * size**2 * (1 + flip))))
    records = open_records(folder, "train")
    if list(records.class_names) != list(run.class_names):
        raise UserError(f"{records.where} has other classes than the images that the run is of")
    sets = generated_sample_sets(run, count=_MEASURED * len(run.class_names), seeds=[config.seed])
    samples = sets[0].images
    groups = []
    for c in spread(records.labels, _CLASSES):
        rows = per_class(samples.labels, [c], _MEASURED)
        indices = np.flatnonzero(records.labels == c)[:most]
        training = _readable(RecordImages(records, size=size, indices=indices), run.mesh)
        if not len(training):
            raise UserError(f"no image of class {records.class_names[c]} can be read")
        groups.append(_Class(samples.pick(rows), training, flip))
    neighbors = _neighbors(groups, features, words)
    found = PixelDistances(
        _median([group.distances() for group in groups]),
        _median([group.distances_of_real() for group in groups]),
    )
    page = Report(
        title=str(workdir),
        protocol={
            "samples": f"seed {config.seed}, one network evaluation each, none chosen",
            "generator": f"step {run.step}, average of {run.average}",
            "training images": f"of {records.where}, centre crops of {size}x{size}, up to {most} "
            "of each class" + flip * ", and their mirror images",
            "copies": f"{found.words}; {_MEASURED} samples of each class",
        },
        records=[],
        pictures=class_grids(sets),
        neighbors=neighbors,
        notes=[],
    )
    write_page(workdir / PAGE, page, curve=None)
    tiles = np.concatenate([neighbors.samples[:, None], neighbors.nearest], axis=1)
    grid = image_grid(np.concatenate(tiles), tiles.shape[1], least=_LEAST_PIXELS)
    save_png(workdir / PICTURE, grid)
    return found


@dataclasses.dataclass(frozen=True)
class _Class:
    """Samples [n, h, w, 3] of a class and its training images [m, h, w, 3], all uint8."""

    samples: np.ndarray
    training: np.ndarray
    flip: bool  # whether mirror images are trained on, too

    @property
    def candidates(self) -> np.ndarray:
        """What a copy would be of: [m or 2m, h, w, 3]."""
        if not self.flip:
            return self.training
        return np.concatenate([self.training, self.training[:, :, ::-1]])

    def distances(self) -> np.ndarray:
        """From each sample to the nearest candidate: [n]."""
        return nearest_distances(_pixels(self.samples), _pixels(self.candidates))

    def distances_of_real(self) -> np.ndarray:
        """From each training image to the nearest candidate of another one: [m], or [0]."""
        m = len(self.training)
        if m < 2:
            return np.zeros(0)
        # At most two of the candidates are the image itself and its mirror image.
        pixels, candidates = _pixels(self.training), _pixels(self.candidates)
        found = nearest_indices(pixels, candidates, count=2 + self.flip)
        other = found.indices % m != np.arange(m)[:, None]
        return np.where(other, found.distances, np.inf).min(axis=1)


def _neighbors(groups: Sequence[_Class], features: Features, words: str) -> Neighbors:
    """The first samples of each class with their nearest training images."""
    count = min(_NEIGHBORS, *(len(group.training) for group in groups))
    nearest, distances = [], []
    for group in groups:
        candidates, m = group.candidates, len(group.training)
        # Of an image and its mirror image the nearer one is shown.
        wanted = count * len(candidates) // m
        found = nearest_indices(
            features(group.samples[:_SHOWN]), features(candidates), count=wanted
        )
        for indices, values in zip(found.indices, found.distances, strict=True):
            first = np.sort(np.unique(indices % m, return_index=True)[1])[:count]
            nearest.append(candidates[indices[first]])
            distances.append(values[first])
    return Neighbors(
        samples=np.concatenate([group.samples[:_SHOWN] for group in groups]),
        nearest=np.stack(nearest),
        distances=np.stack(distances),
        words=f"the nearest training images of the class, by Euclidean distance of {words}.",
    )


def _readable(images: RecordImages, mesh: Mesh) -> np.ndarray:
    """The images that can be read: [m, h, w, 3] uint8."""
    batches = images.batches(mesh, start=0, batch_size=_BATCH * mesh.size)
    return np.concatenate([
        transfer.fetch(batch.images)[: len(batch.usable)][batch.usable] for batch in batches
    ])  # fmt: skip


def _pixels(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1).astype(np.float32) / 127.5 - 1.0


def _median(distances: Sequence[np.ndarray]) -> float:
    found = np.concatenate(distances)
    return float(np.median(found)) if len(found) else 0.0
