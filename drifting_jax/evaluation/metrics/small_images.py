"""Figures for small images, each beside what real images reach against real images.

A figure means little alone: the distance between two finite sets of real images is not 0. Every one
here stands beside its floor, the same measure of the training images in place of the samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from drifting_jax.data.sources import SMALL_SOURCES, as_arrays, make_source
from drifting_jax.errors import UserError
from drifting_jax.evaluation.features.classifier import Classifier, train_classifier
from drifting_jax.evaluation.metrics.frechet import frechet_distance, gaussian_statistics
from drifting_jax.evaluation.metrics.neighbors import nearest_distances, precision_recall

# Comparing every pair is quadratic: beyond this many images a fixed random choice of them is used.
_NEIGHBOR_LIMIT = 5000


class Figure(NamedTuple):
    """A measure of the samples, the same of real images, and which way is better."""

    value: float
    floor: float
    better: str


class SmallImageReference(NamedTuple):
    """What samples are measured with: images and labels of both splits, and the classifier."""

    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    classifier: Classifier


def make_judge(data: Any, *, num_classes: int, key: jax.Array) -> SmallImageReference:
    """Reads both splits of a config's `data` section and trains the classifier: seconds.

    Raises:
      UserError: images that no small classifier knows.
    """
    if data.source not in SMALL_SOURCES:
        raise UserError(
            f"a small classifier knows {', '.join(SMALL_SOURCES)}; these images are {data.source}"
        )
    train, test = (as_arrays(make_source(data, split)) for split in ("train", "test"))
    return SmallImageReference(
        train, test, train_classifier(*train, num_classes=num_classes, key=key)
    )


def evaluate_samples(
    images: np.ndarray,
    labels: np.ndarray,
    *,
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    classifier: Classifier | None = None,
    k: int = 5,
) -> dict[str, Figure]:
    """Compares samples with the held-out real images, and real training images likewise.

    Figures: `fd_pixels`, `fd_classifier` (Fréchet distance to the test images, all pixels in
    [-1,1] or the classifier's features), `precision` and `recall` (on pixels, as many training
    images for the floor as there are samples), `accuracy` (share of samples that the classifier
    gives their label; floor: of test images) and `nearest_training_ratio` (median distance from a
    sample to the nearest training image, over that from a test image: well below 1 where training
    images are copied).

    Args:
      images: samples [n,h,w,c] uint8.
      labels: the class asked for, [n] int.
      train: images [m,h,w,c] uint8 and labels [m] that the generator was trained on.
      test: the same of images that it never saw.
      classifier: trained on `train` alone; without it its two figures are left out.
      k: neighbours that make a ball in precision and recall.

    Raises:
      UserError: samples that are not uint8 images shaped like the data, too few of them, labels
        that do not match them, or values that are not finite.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    _check_samples(images, labels, train[0].shape[1:], k)
    fake, real, unseen = _pixels(images), _pixels(train[0]), _pixels(test[0])
    figures = {
        "fd_pixels": Figure(_distance(fake, unseen), _distance(real, unseen), "lower"),
        **_manifold_figures(fake, real, unseen, k),
        "nearest_training_ratio": _copying_figure(fake, real, unseen),
    }
    if classifier is not None:
        figures |= _classifier_figures(classifier, images, labels, train, test)
    for name, figure in figures.items():
        if not np.isfinite(figure.value):
            raise UserError(f"{name} came out as {figure.value}; the samples cannot be measured")
    return figures


def figures_table(figures: Mapping[str, Figure], *, num_samples: int) -> str:
    """Plain-text table of the figures, one a line, ready to print."""
    width = max(len(name) for name in figures)
    lines = [
        f"{num_samples} samples; 'real' is the same figure of real images",
        f"{'figure':<{width}}  {'samples':>10}  {'real':>10}  better",
    ]
    for name, figure in figures.items():
        lines.append(
            f"{name:<{width}}  {figure.value:>10.4f}  {figure.floor:>10.4f}  {figure.better}"
        )
    return "\n".join(lines)


def figures_as_scalars(figures: Mapping[str, Figure]) -> dict[str, float]:
    """{name: value, name_floor: floor}, for metrics and JSON."""
    values = {name: figure.value for name, figure in figures.items()}
    return values | {f"{name}_floor": figure.floor for name, figure in figures.items()}


def _check_samples(images: np.ndarray, labels: np.ndarray, shape: tuple, k: int) -> None:
    if np.issubdtype(images.dtype, np.floating) and not np.isfinite(images).all():
        bad = np.count_nonzero(~np.isfinite(images.reshape(len(images), -1)).all(axis=1))
        raise UserError(f"{bad} of {len(images)} samples hold values that are not finite")
    if images.dtype != np.uint8 or images.shape[1:] != shape:
        raise UserError(
            f"expected samples [n, {', '.join(map(str, shape))}] of uint8, like the data; "
            f"found {images.shape} of {images.dtype}"
        )
    if labels.shape != images.shape[:1]:
        raise UserError(f"expected a label for each of {len(images)} samples, found {labels.shape}")
    if len(images) <= max(k, 1):
        raise UserError(
            f"too few samples to measure: {len(images)}; expected more than {max(k, 1)}"
        )


def _pixels(images: np.ndarray) -> np.ndarray:
    """Flattened pixels [n, h·w·c] in [-1,1], float64."""
    return images.reshape(len(images), -1) / 127.5 - 1.0


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    return frechet_distance(gaussian_statistics(a), gaussian_statistics(b))


def _choose(points: np.ndarray, count: int) -> np.ndarray:
    """At most `count` of the points, chosen at random but always the same."""
    if len(points) <= count:
        return points
    return points[np.random.default_rng(0).choice(len(points), count, replace=False)]


def _manifold_figures(fake, real, unseen, k: int) -> dict[str, Figure]:
    # The radii shrink as a set grows: samples and floor are compared at equal numbers.
    count = min(len(fake), len(real), _NEIGHBOR_LIMIT)
    unseen = _choose(unseen, _NEIGHBOR_LIMIT)
    sampled = precision_recall(unseen, _choose(fake, count), k=k)
    floor = precision_recall(unseen, _choose(real, count), k=k)
    return {
        "precision": Figure(sampled.precision, floor.precision, "higher"),
        "recall": Figure(sampled.recall, floor.recall, "higher"),
    }


def _copying_figure(fake, real, unseen) -> Figure:
    """Every training image is compared: a copy of one left out would not be seen."""
    fake, unseen = _choose(fake, _NEIGHBOR_LIMIT), _choose(unseen, _NEIGHBOR_LIMIT)
    usual = np.median(nearest_distances(unseen, real))
    if usual == 0.0:
        raise UserError(
            "most test images are in the training images too; give a test split that was held out"
        )
    return Figure(float(np.median(nearest_distances(fake, real)) / usual), 1.0, "near 1")


def _classifier_figures(classifier, images, labels, train, test) -> dict[str, Figure]:
    fake, real, unseen = (classifier.predict(each) for each in (images, train[0], test[0]))
    return {
        "fd_classifier": Figure(
            _distance(fake.features, unseen.features),
            _distance(real.features, unseen.features),
            "lower",
        ),
        "accuracy": Figure(
            float(np.mean(fake.labels == labels)),
            float(np.mean(unseen.labels == test[1])),
            "higher",
        ),
    }
