"""Images of an .npz file, streamed, so that they need not fit in memory."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import jax
import numpy as np
from jax.sharding import Mesh

from drifting_jax.digests import digest_values
from drifting_jax.distributed import transfer
from drifting_jax.errors import UserError, first_line
from drifting_jax.evaluation.features.image_set import Batch, stamp

_MOST_CLASSES = 1_000_000


class ArrayImages:
    """The images `arr_0` [n, h, w, 1 or 3] uint8 of an .npz file, perhaps with labels `arr_1` [n].

    They are streamed from the file, compressed or not.

    Raises:
      UserError: the file is missing or damaged, or holds something else.
    """

    def __init__(self, path: Path):
        self._path = path
        with self._open() as file:
            self._shape, dtype = _read_header(file, path)
        if len(self._shape) != 4 or self._shape[-1] not in (1, 3) or dtype != np.uint8:
            raise UserError(
                f"{path}: arr_0 must be images [n, h, w, 1 or 3] of uint8; found {dtype} "
                f"{list(self._shape)}"
            )
        if not len(self):
            raise UserError(f"{path} holds no image")
        self.labels = self._labels()
        known = [] if self.labels is None else range(int(self.labels.max(initial=-1)) + 1)
        self.class_names = [str(label) for label in known]
        height, width = self._shape[1:3]
        self.words = f"{len(self)} images of {path}, {height}x{width}"
        self.digest = digest_values(path.resolve(), stamp(path))

    def __len__(self) -> int:
        return self._shape[0]

    def name(self, index: int) -> str:
        return f"image {index} of {self._path}"

    def pick(self, indices: Sequence[int]) -> np.ndarray:
        found, rows = {}, set(indices)
        for i, image in enumerate(self._stream(0, max(rows, default=-1) + 1)):
            if i in rows:
                found[i] = image
        return np.stack([found[i] for i in indices])

    def batches(self, mesh: Mesh, *, start: int, batch_size: int) -> Iterator[Batch]:
        own = batch_size // jax.process_count()
        skipped = own * jax.process_index()
        stream = self._stream(start, len(self))
        for first in range(start, len(self), batch_size):
            count = min(batch_size, len(self) - first)
            images = np.zeros((own, *self._shape[1:]), np.uint8)
            for i in range(count):
                image = next(stream)
                if skipped <= i < skipped + own:
                    images[i - skipped] = image
            yield Batch(transfer.global_batch(mesh, images), np.ones(count, bool))

    def _stream(self, start: int, stop: int) -> Iterator[np.ndarray]:
        size = int(np.prod(self._shape[1:]))
        with self._open() as file:
            _read_header(file, self._path)
            file.seek(file.tell() + start * size)
            for i in range(start, stop):
                try:
                    data = file.read(size)
                except Exception as error:  # damaged bytes raise anything
                    raise UserError(f"{self._path} is damaged at image {i}: {error}") from None
                if len(data) != size:
                    raise UserError(f"{self._path} is cut off at image {i} of {len(self)}")
                yield np.frombuffer(data, np.uint8).reshape(self._shape[1:])

    def _open(self) -> IO[bytes]:
        try:
            return zipfile.ZipFile(self._path).open("arr_0.npy")
        except KeyError:
            raise UserError(f"{self._path} holds no array called arr_0") from None
        except Exception as error:  # damaged bytes raise anything
            raise UserError(
                f"{self._path} is no .npz file that can be read: {first_line(error)}"
            ) from None

    def _labels(self) -> np.ndarray | None:
        try:
            with np.load(self._path) as arrays:
                if "arr_1" not in arrays.files:
                    return None
                labels = np.asarray(arrays["arr_1"])
        except Exception as error:  # damaged bytes raise anything
            raise UserError(f"{self._path}: arr_1 is no array: {first_line(error)}") from None
        whole = labels.dtype.kind in "iu" and labels.shape == (len(self),)
        if not whole or labels.min() < 0:
            raise UserError(
                f"{self._path}: arr_1 must be {len(self)} labels, none below 0; found "
                f"{labels.dtype} {list(labels.shape)}"
            )
        if labels.max() >= _MOST_CLASSES:
            raise UserError(
                f"{self._path}: arr_1 must be labels below {_MOST_CLASSES}; found {labels.max()}"
            )
        return labels.astype(np.int32)


def _read_header(file: IO[bytes], path: Path) -> tuple[tuple[int, ...], np.dtype]:
    try:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0}.get(
            version, np.lib.format.read_array_header_2_0
        )
        shape, by_columns, dtype = read(file)
    except Exception as error:  # damaged bytes raise anything
        raise UserError(f"{path}: arr_0 is no array: {first_line(error)}") from None
    if by_columns:
        raise UserError(f"{path}: arr_0 is stored by columns; save it with np.ascontiguousarray")
    return shape, dtype
