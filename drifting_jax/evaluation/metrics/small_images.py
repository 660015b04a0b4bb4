"""Metrics of small images, each with its baseline of real images.

The distance between two finite sets of real images is not 0, so a value alone says little. The
baseline is the same metric of the training images in place of the samples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from drifting_jax.data.sources import SMALL_SOURCES, as_arrays, make_source
from drifting_jax.errors import UserError
from drifting_jax.evaluation.features.classifier import Classifier, train_classifier
from drifting_jax.evaluation.metrics.frechet import frechet_distance, gaussian_statistics
from drifting_jax.evaluation.metrics.neighbors import nearest_distances, precision_recall
from drifting_jax.evaluation.metrics.records import MetricRecord

# All pairs are compared, which is quadratic: of larger sets a fixed random choice is used.
_NEIGHBOR_LIMIT = 5000


class SmallImageReference(NamedTuple):
    """What samples are compared with: images and labels of both splits, and the classifier.

    `labelled` says whether the labels of the samples are those of the images.
    """

    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    classifier: Classifier
    labelled: bool = True


def make_small_reference(data: Any, *, num_classes: int, key: jax.Array) -> SmallImageReference:
    """Reads both splits of a config's `data` section and trains the classifier, in seconds.

    The classifier always learns the labels of the images.

    Args:
      data: the section.
      num_classes: of the run, 1 for one without labels.
      key: of the classifier.

    Raises:
      UserError: the images are not among `SMALL_SOURCES`.
    """
    if data.source not in SMALL_SOURCES:
        raise UserError(
            f"a small classifier knows {', '.join(SMALL_SOURCES)}; these images are {data.source}"
        )
    source, unseen = (make_source(data, split, labels=True) for split in ("train", "test"))
    train, classes = as_arrays(source), source.num_classes
    classifier = train_classifier(*train, num_classes=classes, key=key)
    return SmallImageReference(train, as_arrays(unseen), classifier, num_classes == classes)


def distances_to_test(
    reference: SmallImageReference,
) -> Callable[[np.ndarray], list[MetricRecord]]:
    """Returns a function that measures samples [n,h,w,c] uint8: `fd_pixels` and `fd_classifier`.

    The records are those of `measure_small_images`. Statistics of the real images are computed
    once, for any number of sets of samples.
    """
    classifier = reference.classifier
    features: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "fd_pixels": _pixels,
        "fd_classifier": lambda images: classifier.predict(images).features,
    }
    unseen = {name: gaussian_statistics(of(reference.test[0])) for name, of in features.items()}

    def distance(name: str, images: np.ndarray) -> float:
        return frechet_distance(gaussian_statistics(features[name](images)), unseen[name])

    baselines = {name: distance(name, reference.train[0]) for name in features}

    def measure(images: np.ndarray) -> list[MetricRecord]:
        return [
            MetricRecord(name, distance(name, images), baseline=baselines[name])
            for name in features
        ]

    return measure


def measure_small_images(
    images: np.ndarray,
    labels: np.ndarray,
    *,
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    classifier: Classifier | None = None,
    k: int = 5,
    labelled: bool = True,
) -> list[MetricRecord]:
    """Records of the samples against the test images, with baselines of the training images.

    Metrics: `fd_pixels` and `fd_classifier` (Fréchet distance to the test images, of all pixels in
    [-1,1] and of the classifier's features); `precision` and `recall` (on pixels; their baseline
    takes as many training images as there are samples); `accuracy` (share of samples that the
    classifier gives their label; baseline: of test images); `nearest_training_ratio` (median
    distance from a sample to the nearest training image, over that from a test image: well below 1
    where training images are copied).

    Args:
      images: samples [n,h,w,c] uint8.
      labels: the class asked for, [n] int.
      train: images [m,h,w,c] uint8 and labels [m] that the generator was trained on.
      test: the same of images that it never saw.
      classifier: trained on `train` alone; without it its two metrics are left out.
      k: neighbours that make a ball in precision and recall.
      labelled: whether `labels` are those of the data; otherwise `accuracy` is left out.

    Raises:
      UserError: samples that are not uint8 images shaped like the data, too few of them, labels
        that do not match them, or values that are not finite.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    _check_samples(images, labels, train[0].shape[1:], k)
    fake, real, unseen = _pixels(images), _pixels(train[0]), _pixels(test[0])
    records = [
        MetricRecord("fd_pixels", _distance(fake, unseen), baseline=_distance(real, unseen)),
        *_manifold_records(fake, real, unseen, k),
        _copying_record(fake, real, unseen),
    ]
    if classifier is not None:
        found = _classifier_records(classifier, images, labels, train, test)
        records += [record for record in found if labelled or record.metric != "accuracy"]
    for record in records:
        if not np.isfinite(record.value):
            raise UserError(
                f"{record.metric} came out as {record.value}; the samples cannot be measured"
            )
    return records


def _check_samples(images: np.ndarray, labels: np.ndarray, shape: tuple[int, ...], k: int) -> None:
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
    """At most `count` of the points: a random choice that is always the same."""
    if len(points) <= count:
        return points
    return points[np.random.default_rng(0).choice(len(points), count, replace=False)]


def _manifold_records(
    fake: np.ndarray, real: np.ndarray, unseen: np.ndarray, k: int
) -> list[MetricRecord]:
    # Balls shrink as a set grows: samples and baseline are compared at equal numbers.
    count = min(len(fake), len(real), _NEIGHBOR_LIMIT)
    unseen = _choose(unseen, _NEIGHBOR_LIMIT)
    found = precision_recall(unseen, _choose(fake, count), k=k)
    baseline = precision_recall(unseen, _choose(real, count), k=k)
    return [
        MetricRecord("precision", found.precision, baseline=baseline.precision),
        MetricRecord("recall", found.recall, baseline=baseline.recall),
    ]


def _copying_record(fake: np.ndarray, real: np.ndarray, unseen: np.ndarray) -> MetricRecord:
    # Every training image is compared: a copy of one left out would not be seen.
    fake, unseen = _choose(fake, _NEIGHBOR_LIMIT), _choose(unseen, _NEIGHBOR_LIMIT)
    usual = np.median(nearest_distances(unseen, real))
    if usual == 0.0:
        raise UserError(
            "most test images are in the training images too; give a test split that was held out"
        )
    ratio = float(np.median(nearest_distances(fake, real)) / usual)
    return MetricRecord("nearest_training_ratio", ratio, baseline=1.0)


def _classifier_records(
    classifier: Classifier,
    images: np.ndarray,
    labels: np.ndarray,
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
) -> list[MetricRecord]:
    fake, real, unseen = (classifier.predict(each) for each in (images, train[0], test[0]))
    return [
        MetricRecord(
            "fd_classifier",
            _distance(fake.features, unseen.features),
            baseline=_distance(real.features, unseen.features),
        ),
        MetricRecord(
            "accuracy",
            float(np.mean(fake.labels == labels)),
            baseline=float(np.mean(unseen.labels == test[1])),
        ),
    ]
