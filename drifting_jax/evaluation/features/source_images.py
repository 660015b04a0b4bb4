"""The images of a small data source, which lie in memory, as a set that is measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from drifting_jax.data.sources import Source, as_arrays
from drifting_jax.digests import digest_values
from drifting_jax.distributed import transfer
from drifting_jax.evaluation.features.image_set import Batch


class SourceImages:
    """All images of a source, in its order, without augmentation. `ImageSet` has the members.

    Args:
      source: of uint8 images.
      words: what it is, such as "the training split of cifar10".
    """

    def __init__(self, source: Source, words: str):
        self._images, self.labels = as_arrays(source)
        self.class_names = list(source.class_names)
        self.digest = digest_values(self._images, self.labels)
        height, width = self._images.shape[1:3]
        count = len(self._images)
        self.words = f"all {count} images of {words}, {height}x{width}, digest {self.digest}"

    def __len__(self) -> int:
        return len(self._images)

    def name(self, index: int) -> str:
        return f"image {index}"

    def pick(self, indices: Sequence[int]) -> np.ndarray:
        return self._images[np.asarray(indices, np.int64)]

    def batches(self, mesh: Mesh, *, start: int, batch_size: int) -> Iterator[Batch]:
        own = batch_size // jax.process_count()
        for first in range(start, len(self), batch_size):
            mine = first + own * jax.process_index()
            images = np.zeros((own, *self._images.shape[1:]), np.uint8)
            found = self._images[mine : mine + own]
            images[: len(found)] = found
            count = min(batch_size, len(self) - first)
            yield Batch(transfer.global_batch(mesh, images), np.ones(count, bool))
