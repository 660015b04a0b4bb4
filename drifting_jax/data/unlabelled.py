"""A source without its labels: all records are of one class."""

from __future__ import annotations

from typing import Any

import numpy as np

from drifting_jax.data.file_list import UNLABELLED
from drifting_jax.data.transforms import Augmentation


class UnlabelledSource:
    """The records of a source, in its order, all of the class 0. `sources.Source` has the members.

    Args:
      source: a `sources.Source` with labels.
    """

    num_classes = 1
    labels_are_cheap = True

    def __init__(self, source: Any):
        self._source = source
        self.image_shape, self.image_dtype = source.image_shape, source.image_dtype
        self.class_names = [UNLABELLED]
        self.labels = np.zeros(len(source), np.int32)
        self.fingerprint, self.facts = source.fingerprint, source.facts

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """A record as evaluation sees it."""
        return {**self._source[index], "label": np.int32(0)}

    def draw(
        self, index: int, rng: np.random.Generator, augmentation: Augmentation
    ) -> dict[str, Any]:
        """A record as training sees it."""
        return {**self._source.draw(index, rng, augmentation), "label": np.int32(0)}

    def name(self, index: int) -> str:
        """What a record is called in messages."""
        return self._source.name(index)
