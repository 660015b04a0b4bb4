"""Many strings in two arrays: names of files and of classes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

import numpy as np


class Names(Sequence[str]):
    """Many strings in two arrays, cheap to store, to hash and to send to other processes."""

    def __init__(self, data: np.ndarray, ends: np.ndarray):
        self.data, self.ends = data, ends

    @classmethod
    def of(cls, names: Iterable[str]) -> Names:
        encoded = [os.fsencode(name) for name in names]
        ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        return cls(np.frombuffer(b"".join(encoded), np.uint8), ends)

    @classmethod
    def checked(cls, data: np.ndarray, ends: np.ndarray) -> Names:
        """The names in two arrays of a file. Raises ValueError if they do not fit each other."""
        kinds = np.asarray(data).dtype == np.uint8 and np.asarray(ends).dtype == np.int64
        if not kinds or data.ndim != 1 or ends.ndim != 1:
            raise ValueError("names must be bytes and their ends")
        if np.any(np.diff(ends, prepend=0) < 0) or ends[-1:].sum() != len(data):
            raise ValueError("the ends of names do not fit their bytes")
        return cls(data, ends)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:  # type: ignore[override]  # no slices
        if not 0 <= index < len(self):
            raise IndexError(index)
        start = self.ends[index - 1] if index else 0
        return os.fsdecode(self.data[start : self.ends[index]].tobytes())
