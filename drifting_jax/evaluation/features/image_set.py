"""What every set of images that is measured hands out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import jax
import numpy as np
from jax.sharding import Mesh


class Batch(NamedTuple):
    """images [b, h, w, 1 or 3] uint8, split over the devices, the last rows perhaps padding;
    usable [n <= b] bool on the host, the same on all processes: which of the first n are images."""

    images: jax.Array
    usable: np.ndarray


class ImageSet(Protocol):
    """A set of images.

    Attributes:
      words: what it is, for a report.
      digest: hexadecimal digits that tell it from others.
      labels: [n] int32, or None where nobody knows.
      class_names: of the labels.
    """

    words: str
    digest: str
    labels: np.ndarray | None
    class_names: Sequence[str]

    def __len__(self) -> int: ...

    def batches(self, mesh: Mesh, *, start: int, batch_size: int) -> Iterator[Batch]:
        """Batches of all images from the `start`-th on; batch_size is a multiple of the mesh's."""
        ...

    def pick(self, indices: Sequence[int]) -> np.ndarray:
        """Some images on the host, on every process: [k, h, w, c] uint8."""
        ...

    def name(self, index: int) -> str:
        """What an image is called, in a message."""
        ...


def stamp(path: Path) -> tuple[int, int]:
    """Size and time of a file, that tell when it was written anew; zeros where there is none."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns
