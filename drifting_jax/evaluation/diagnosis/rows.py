"""Class rows of real images: stand-ins for generated samples, and two draws of their targets.

There is no generator before training, so real images stand in for q: those of all classes, or
means of two of them. p is one class.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from drifting_jax.data.sources import Source
from drifting_jax.data.transforms import UnreadableImage
from drifting_jax.errors import UserError

STAND_INS = {
    "classes": "real images of any class",
    "blends": "means of two real images of any class",
}
_LEAST_POSITIVES = 4
_LEAST_GENERATED = 2


@dataclasses.dataclass(frozen=True)
class RowSizes:
    """How many images a row has, and what they are.

    Attributes:
      labels: the class of each row.
      generated: g, samples x; each of two draws has as many negatives z.
      positives: p of each of two draws.
      stand_in: what stands in for q, a key of `STAND_INS`.
    """

    labels: tuple[int, ...]
    generated: int
    positives: int
    stand_in: str

    @property
    def images_of_q(self) -> int:
        """Real images from which a row's samples and negatives are made."""
        return 3 * self.generated * (2 if self.stand_in == "blends" else 1)


def row_sizes(
    labels: np.ndarray,
    key: jax.Array,
    *,
    rows: int,
    generated: int,
    positives: int,
    stand_in: str = "",
) -> RowSizes:
    """Returns sizes that the data allows: two draws of positives of a class have no common image.

    Args:
      labels: [n] of all images.
      key: chooses the classes.
      rows: the most class rows.
      generated, positives: g and p that are wanted; fewer, if the data has too few images.
      stand_in: a key of `STAND_INS`; empty for "classes", or "blends" if there is one class alone.

    Raises:
      UserError: the data is too small, or has one class and the stand-ins are to be of all.
    """
    counts = np.bincount(labels)
    stand_in = stand_in or ("classes" if np.count_nonzero(counts) > 1 else "blends")
    if stand_in == "classes" and np.count_nonzero(counts) < 2:
        raise UserError("--generated=classes takes two classes; the data has one: use blends")
    positives = min(positives, int(counts.max()) // 2)
    if positives < _LEAST_POSITIVES:
        raise UserError(
            f"a diagnosis takes two draws of {_LEAST_POSITIVES} images of a class at least; the "
            f"largest class has {counts.max()} images"
        )
    fitting = np.flatnonzero(counts >= 2 * positives)
    chosen = np.asarray(jax.random.permutation(key, fitting))[:rows]
    per_sample = RowSizes((), 1, positives, stand_in).images_of_q
    generated = min(generated, (len(labels) - 2 * positives) // per_sample)
    if generated < _LEAST_GENERATED:
        raise UserError(
            f"a diagnosis takes {2 * positives} images of a class and {2 * per_sample} others at "
            f"least; the data has {len(labels)} images"
        )
    return RowSizes(tuple(sorted(int(label) for label in chosen)), generated, positives, stand_in)


def draw_row(source: Source, label: int, key: jax.Array, sizes: RowSizes) -> np.ndarray:
    """Returns images [g + 2g + 2p, h, w, channels] of one row: x, then z, z', y and y'.

    No image occurs twice, except in those that cannot be read and are replaced.

    Raises:
      UserError: too few images can be read.
    """
    of_class, of_all = jax.random.split(key)
    labels = np.asarray(source.labels)
    own = np.asarray(jax.random.permutation(of_class, np.flatnonzero(labels == label)))
    positive, left = _read(source, own, 2 * sizes.positives)
    others = np.concatenate([np.flatnonzero(labels != label), left])
    others = np.asarray(jax.random.permutation(of_all, np.sort(others)))
    of_q, _ = _read(source, others, sizes.images_of_q)
    if sizes.stand_in == "blends":
        means = of_q.reshape(2, -1, *of_q.shape[1:]).astype(np.float32).mean(axis=0)
        of_q = (np.rint(means) if of_q.dtype == np.uint8 else means).astype(of_q.dtype)
    return np.concatenate([of_q, positive])


def _read(source: Source, indices: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first `count` images that can be read, and the indices after them."""
    found: list[np.ndarray] = []
    for at, image in _readable(source, indices):
        found.append(image)
        if len(found) == count:
            return np.stack(found), indices[at + 1 :]
    raise UserError(f"{len(found)} of {len(indices)} images can be read; the row needs {count}")


def _readable(source: Source, indices: Sequence[int] | np.ndarray) -> Iterator:
    for at, index in enumerate(indices):
        try:
            yield at, source[int(index)]["image"]
        except UnreadableImage:
            continue
