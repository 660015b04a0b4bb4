"""The interface of a set of images that is measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import jax
import numpy as np
from jax.sharding import Mesh


class Batch(NamedTuple):
    """images [b, h, w, 1 or 3] uint8, split over the devices, the last rows perhaps padding; usable
    [n <= b] bool on the host, the same on all processes: which of the n images can be measured."""

    images: jax.Array
    usable: np.ndarray


class ImageSet(Protocol):
    """A set of images.

    Attributes:
      words: what it is, for a report.
      digest: hexadecimal digits that tell it from others.
      labels: [n] int32, or None if they are unknown.
      class_names: of the labels.
    """

    @property
    def words(self) -> str: ...

    @property
    def digest(self) -> str: ...

    @property
    def labels(self) -> np.ndarray | None: ...

    @property
    def class_names(self) -> Sequence[str]: ...

    def __len__(self) -> int: ...

    def batches(self, mesh: Mesh, *, start: int, batch_size: int) -> Iterator[Batch]:
        """Batches of the images from the `start`-th on; the mesh divides batch_size."""
        ...

    def pick(self, indices: Sequence[int]) -> np.ndarray:
        """The images of some indices, on the host of every process: [k, h, w, c] uint8."""
        ...

    def name(self, index: int) -> str:
        """Words for an image in a message."""
        ...


def stamp(path: Path) -> tuple[int, int]:
    """Size and time of a file, that tell when it was written anew; zeros where there is none."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns
