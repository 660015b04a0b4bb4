"""Images that are measured: of a folder or data set, of an .npz file, or made by a generator.

Each set gives batches on the devices, in a fixed order, from any index on, with marks on the images
that cannot be measured. None holds more than a few batches in memory.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from drifting_jax.data import transforms
from drifting_jax.data.class_names import title
from drifting_jax.data.records import Records, describe_records, open_records
from drifting_jax.data.transforms import FailedRead, UnreadableImage
from drifting_jax.digests import digest_values
from drifting_jax.distributed import transfer
from drifting_jax.errors import UserError
from drifting_jax.evaluation.features.array_images import ArrayImages
from drifting_jax.evaluation.features.image_set import Batch, ImageSet, stamp
from drifting_jax.files import expanded
from drifting_jax.steps import sampling
from drifting_jax.steps.generator import Generator

_THREADS = 8  # for reading and decoding
_AHEAD = 3  # batches that are read while one is measured
_PICKED_AT_ONCE = 64


def open_images(path: str | Path, *, split: str = "train", size: int = 0) -> ImageSet:
    """Opens the images of a folder, a data set or an .npz file.

    Args:
      path: what `data.records.open_records` takes, or an .npz file with `arr_0`.
      split: "train" or "test".
      size: side of the centre crop of each image; 0 takes images as they are, all of one size.

    Raises:
      UserError: there are no images, or latents.
    """
    path = Path(expanded(str(path)))
    if path.suffix == ".npz" or path.is_file():
        if size:
            raise UserError(f"a size goes with a folder of images; {path} is measured as it is")
        return ArrayImages(path)
    records = open_records(path, split)
    if records.format == "drifting_jax.latents":
        raise UserError(f"{records.where} holds latents; expected images")
    return RecordImages(records, size=size)


def describe_images(images: ImageSet) -> list[str]:
    """Lines for a person: what was found, and the files that were skipped."""
    return images.description if isinstance(images, RecordImages) else [f"data: {images.words}"]


class RecordImages:
    """Encoded images, decoded with Pillow.

    Args:
      records: see `open_records`.
      size: side of ADM's centre crop; 0 takes images as they are, all of the first one's size.
      indices: records that belong to the set, in this order; None for all.

    Attributes:
      description: lines that say what was found and skipped.
    """

    def __init__(self, records: Records, *, size: int = 0, indices: np.ndarray | None = None):
        self._records, self._size = records, size
        self._indices = np.arange(len(records)) if indices is None else np.asarray(indices)
        self.description = describe_records(records, len(self._indices))
        named = list(records.class_names)
        self.labels = records.labels[self._indices] if len(named) > 1 else None
        self.class_names = [title(name) for name in named]
        self.digest = digest_values(records.fingerprint, size, self._indices, *_stamps(records))
        self._shape: tuple[int, ...] = (size, size, 3) if size else ()
        if not size:
            self._shape = self._first_shape()
        height, width = self._shape[:2]
        crop = "centre crops of " if size else ""
        self.words = f"{len(self)} images of {records.where}, {crop}{height}x{width}"

    def __len__(self) -> int:
        return len(self._indices)

    def name(self, index: int) -> str:
        return f"{self._records.name(int(self._indices[index]))} of {self._records.where}"

    def pick(self, indices: Sequence[int]) -> np.ndarray:
        images, _ = self._read(np.asarray(indices))
        return images

    def batches(self, mesh: Mesh, *, start: int, batch_size: int) -> Iterator[Batch]:
        first = range(start, len(self), batch_size)
        with ThreadPoolExecutor(1) as ahead:
            waiting = [ahead.submit(self._own_rows, at, batch_size) for at in first[:_AHEAD]]
            for i, at in enumerate(first):
                images, usable = waiting.pop(0).result()
                if i + _AHEAD < len(first):
                    waiting.append(ahead.submit(self._own_rows, first[i + _AHEAD], batch_size))
                count = min(batch_size, len(self) - at)
                yield Batch(transfer.global_batch(mesh, images), _of_all(usable)[:count])

    def _own_rows(self, start: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        """This process's part of a batch, padded with black images."""
        own = batch_size // jax.process_count()
        first = start + own * jax.process_index()
        return self._read(np.arange(first, min(first + own, len(self))), length=own)

    def _read(self, indices: np.ndarray, length: int = 0) -> tuple[np.ndarray, np.ndarray]:
        images = np.zeros((max(length, len(indices)), *self._shape), np.uint8)
        usable = np.zeros(len(images), bool)

        def read(row: int) -> None:
            try:
                images[row] = self._decode(int(self._indices[indices[row]]))
                usable[row] = True
            except FailedRead as error:  # may pass: the image need not be damaged
                raise OSError(
                    f"{self.name(int(indices[row]))} could not be read ({error}): the same "
                    "command goes on from here"
                ) from None
            except UnreadableImage as error:
                name = self.name(int(indices[row]))
                logging.warning("unreadable, left out: %s: %s", name, error)

        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(read, range(len(indices))))
        return images, usable

    def _decode(self, record: int) -> np.ndarray:
        data, _ = self._records.read(record)
        if self._size:
            return transforms.load(data, self._size)
        image = np.asarray(transforms.decode(data))
        if self._shape and image.shape != self._shape:
            here, first = ("x".join(map(str, shape[:2])) for shape in (image.shape, self._shape))
            raise UserError(
                f"{self._records.name(record)} of {self._records.where} has {here} pixels, the "
                f"first image {first}: say with --image_size to what they shall be cut"
            )
        return image

    def _first_shape(self) -> tuple[int, ...]:
        reason = ""
        for record in self._indices[:100]:
            try:
                return self._decode(int(record)).shape
            except UnreadableImage as error:
                reason = f"{self._records.name(int(record))}: {error}"
        raise UserError(
            f"none of the first images of {self._records.where} can be read; the last is {reason}"
        )


def _stamps(records: Records) -> list[tuple[int, int]]:
    """Size and time of each file of a folder, which change when it is written anew."""
    if records.format != "folder":
        return []
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(lambda i: stamp(Path(records.where, records.name(i))),
                             range(len(records))))  # fmt: skip


def _of_all(own: np.ndarray) -> np.ndarray:
    """The marks of all processes' rows, in the order of the processes."""
    if jax.process_count() == 1:
        return own
    return np.asarray(multihost_utils.process_allgather(own)).reshape(-1)


@dataclasses.dataclass(frozen=True)
class GeneratedImages:
    """Samples of a generator at one guidance scale and seed.

    Attributes:
      generator: makes them; a sample depends only on the weights and the fields below.
      labels: [n] int32. indices: [n] int32, of each within its class.
      seed, cfg_scale: of the samples.
      identity: a digest of the weights, or words for them.
    """

    generator: Generator
    labels: np.ndarray
    indices: np.ndarray
    seed: int
    cfg_scale: float
    identity: str

    @property
    def words(self) -> str:
        return f"{len(self)} samples at alpha {self.cfg_scale:g}, seed {self.seed}"

    @property
    def digest(self) -> str:
        return digest_values(self.identity, self.labels, self.indices, self.seed, self.cfg_scale)

    @property
    def class_names(self) -> list[str]:
        return [title(name) for name in self.generator.class_names]

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        return f"sample {self.indices[index]} of class {self.labels[index]}, seed {self.seed}"

    def batches(self, mesh: Mesh, *, start: int, batch_size: int) -> Iterator[Batch]:
        del mesh  # the generator's own
        found = self.generator.batches(
            self.labels[start:],
            self.indices[start:],
            seed=self.seed,
            cfg_scale=self.cfg_scale,
            batch_size=batch_size,
        )
        for first, batch in zip(range(start, len(self), batch_size), found, strict=True):
            finite = transfer.fetch(batch.finite)
            yield Batch(batch.images, finite[: len(self) - first])

    def pick(self, indices: Sequence[int]) -> np.ndarray:
        rows = np.asarray(indices)
        found = self.generator.batches(
            self.labels[rows],
            self.indices[rows],
            seed=self.seed,
            cfg_scale=self.cfg_scale,
            batch_size=_PICKED_AT_ONCE,
        )
        return sampling.concatenated(found, len(rows)).images


def balanced_labels(count: int, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels [n] and indices within each class [n], int32, class after class, for n samples.

    The classes have equally many; if they do not divide n, the first ones have one more.
    """
    counts = np.full(num_classes, count // num_classes)
    counts[: count % num_classes] += 1
    labels = np.repeat(np.arange(num_classes, dtype=np.int32), counts)
    return labels, np.concatenate([np.arange(n, dtype=np.int32) for n in counts])


def per_class(labels: np.ndarray | None, classes: Sequence[int], count: int) -> list[int]:
    """Indices of the first `count` images of each class; without labels, of the set."""
    if labels is None:
        return list(range(count * max(len(classes), 1)))
    return [int(i) for c in classes for i in np.flatnonzero(labels == c)[:count]]
