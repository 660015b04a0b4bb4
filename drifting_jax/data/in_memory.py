"""Bases of sources of small, decoded samples."""

from __future__ import annotations

import abc
from typing import Any

import numpy as np

from drifting_jax.data.facts import SourceFacts
from drifting_jax.data.transforms import Augmentation, augment
from drifting_jax.digests import digest_values


class DecodedSource(abc.ABC):
    """Base of sources whose samples need no decoding and no crop: `draw` augments `[index]`.

    A subclass sets `image_shape`, `num_classes`, `class_names` and `labels`, and defines `__len__`
    and `__getitem__`. `sources.Source` describes all of these.
    """

    image_dtype: np.dtype = np.dtype(np.uint8)
    fingerprint = ""
    labels_are_cheap = True
    facts = SourceFacts("memory")

    @abc.abstractmethod
    def __getitem__(self, index: int) -> dict[str, Any]:
        """A record as evaluation sees it."""

    def draw(
        self, index: int, rng: np.random.Generator, augmentation: Augmentation
    ) -> dict[str, Any]:
        """A record as training sees it."""
        record = self[index]
        if augmentation == Augmentation():
            return record
        return record | {"image": augment(record["image"], augmentation, rng)}

    def name(self, index: int) -> str:
        """What a record is called in messages."""
        return f"record {index}"


class ArraySource(DecodedSource):
    """A source of arrays.

    Args:
      images: [n, ...] samples: images [n, h, w, 1 or 3] uint8, or points [n, 2] float32.
      labels: [n], each in 0..classes-1.
      class_names: name of each class.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, class_names: list[str]):
        self.image_shape, self.image_dtype = images.shape[1:], images.dtype
        self.class_names, self.num_classes = class_names, len(class_names)
        self.labels = np.asarray(labels, np.int32)
        self._images = images

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self._images[index], "label": self.labels[index]}


class FileSource(ArraySource):
    """A source of arrays that were read from files.

    Its fingerprint is that of the images and labels, whatever the format of the files.

    Args:
      images, labels, class_names: as of `ArraySource`.
      facts: where the files lie, and their format.
    """

    def __init__(
        self, images: np.ndarray, labels: np.ndarray, class_names: list[str], facts: SourceFacts
    ):
        super().__init__(images, labels, class_names)
        self.facts = facts
        self.fingerprint = digest_values(images, self.labels)
