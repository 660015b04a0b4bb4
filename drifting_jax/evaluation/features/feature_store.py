"""Features of a set of images on the disk: written as they are made, resumed, used again."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from drifting_jax.errors import UserError
from drifting_jax.files import read_json, write_json

_PROGRESS = "progress.json"
_USABLE = "usable"


class FeatureStore:
    """Arrays [n, d] float32 by name, as .npy files in a folder, filled from the first row on.

    Opening the folder again continues after the rows that were flushed. A mark tells the rows of
    images that could be measured from the others. One process writes.

    Args:
      folder: made if need be. A store of other arrays in it is deleted.
      rows: n.
      widths: {name: d}.

    Raises:
      UserError: there is no room on the disk.
    """

    def __init__(self, folder: Path, *, rows: int, widths: Mapping[str, int]):
        self.folder, self.rows = folder, rows
        self._widths = dict(sorted(widths.items()))
        self._plan = {"rows": rows, "widths": self._widths}
        self.done = self._found()
        if not self.done:
            self._make()
        self._arrays = {name: np.load(self._file(name), mmap_mode="r+") for name in self._names}

    @property
    def _names(self) -> list[str]:
        return [*self._widths, _USABLE]

    @property
    def _kinds(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Shape and dtype of each array."""
        kinds = {n: ((self.rows, width), np.dtype(np.float32)) for n, width in self._widths.items()}
        return kinds | {_USABLE: ((self.rows,), np.dtype(np.bool_))}

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.npy"

    def _found(self) -> int:
        """Number of rows that the folder holds already."""
        try:
            record = read_json(self.folder / _PROGRESS)
            arrays = {name: np.load(self._file(name), mmap_mode="r") for name in self._names}
        except Exception:  # damaged bytes raise anything; without the files, all begins anew
            return 0
        done = record.get("done")
        kinds = {name: (array.shape, array.dtype) for name, array in arrays.items()}
        if record.get("plan") != self._plan or kinds != self._kinds or type(done) is not int:
            return 0
        return done if 0 <= done <= self.rows else 0

    def _make(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        needed = 4 * self.rows * sum(self._widths.values())
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise UserError(
                f"the features of {self.rows} images need {needed / 2**30:.1f} GiB in "
                f"{self.folder}, which has {free / 2**30:.1f} left: make room, or choose another "
                "--out"
            )
        for name, (shape, dtype) in self._kinds.items():
            self._make_array(name, dtype, shape)

    def _make_array(self, name: str, dtype: np.dtype, shape: tuple[int, ...]) -> None:
        np.lib.format.open_memmap(self._file(name), "w+", dtype, shape)
        # Reserved now: a memory map crashes if the disk fills up later.
        with open(self._file(name), "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, self._file(name).stat().st_size)

    def append(self, features: Mapping[str, np.ndarray], usable: np.ndarray) -> None:
        """Adds the next rows: {name: [k, d]}, and which of their images are usable, [k]."""
        rows = slice(self.done, self.done + len(usable))
        for name in self._widths:
            self._arrays[name][rows] = features[name][: len(usable)]
        self._arrays[_USABLE][rows] = usable
        self.done += len(usable)

    def flush(self) -> None:
        """Writes all rows so far, so that a kill loses none of them."""
        for array in self._arrays.values():
            array.flush()
        write_json(self.folder / _PROGRESS, {"plan": self._plan, "done": self.done})

    @property
    def unusable(self) -> np.ndarray:
        """Indices of the rows of images that could not be measured."""
        return np.flatnonzero(~np.asarray(self._arrays[_USABLE][: self.done]))

    @property
    def usable(self) -> np.ndarray:
        """Indices of the usable rows."""
        return np.flatnonzero(self._arrays[_USABLE][: self.done])

    def __contains__(self, name: str) -> bool:
        return name in self._widths

    def width(self, name: str) -> int:
        """d of one kind of features."""
        return self._widths[name]

    def blocks(self, name: str, *, size: int = 1024) -> Iterator[np.ndarray]:
        """The usable rows of each `size` rows: [k, d] float32."""
        array, usable = self._arrays[name], self._arrays[_USABLE]
        for start in range(0, self.done, size):
            rows = slice(start, min(start + size, self.done))
            yield np.asarray(array[rows][usable[rows]])

    def array(self, name: str) -> np.ndarray:
        """The usable rows, [k, d] float32; left on the disk if all rows are usable."""
        if not len(self.unusable):
            return self._arrays[name][: self.done]
        return self.take(name)

    def take(self, name: str, most: float = math.inf, *, seed: int = 0) -> np.ndarray:
        """The usable rows, [k, d] float32; if there are more than `most`, a random choice of them.

        The choice keeps their order, and depends only on the seed and their number.
        """
        usable = self.usable
        if len(usable) > most:
            drawn = np.random.default_rng(seed).choice(len(usable), int(most), replace=False)
            usable = usable[np.sort(drawn)]
        return np.asarray(self._arrays[name][usable])

    def delete(self) -> None:
        """Removes the folder."""
        self._arrays = {}
        shutil.rmtree(self.folder, ignore_errors=True)
