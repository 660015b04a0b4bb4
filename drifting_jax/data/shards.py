"""Records packed into ArrayRecord files, with random access; `shard_writer` writes them.

A prepared split is a folder with the files `00003-of-00064.array_record` of equal numbers of
records, `index.npz` (labels, names, checksums), `unreadable.jsonl` (why some images could not be
read) if there are such, and `info.json`, which is written last.
"""

from __future__ import annotations

import json
import threading
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from drifting_jax.data.facts import Skipped
from drifting_jax.data.names import Names
from drifting_jax.data.transforms import UnreadableImage
from drifting_jax.data.unreadable import read_reasons
from drifting_jax.errors import UserError
from drifting_jax.files import read_json

IMAGES, LATENTS = FORMATS = ("drifting_jax.images", "drifting_jax.latents")
UNREADABLE = b""  # the record of an image that could not be read when it was packed
REASONS = "unreadable.jsonl"
_NEEDED = {"class_names": list, "fingerprint": str, "image_size": int, "count": int,
           "records_per_shard": int, "checksum": str}  # fmt: skip


class ShardRecords:
    """A prepared split with random access.

    Args:
      folder: that holds `info.json`.
      max_open: files that are open at once; systems limit their number.

    Attributes:
      info: the contents of `info.json`, such as `format` and `class_names`.
      class_names, labels, fingerprint: of the data set that was packed. The fingerprint of images
        that were cut ends in the checksum of the new bytes.
      where: the folder.
      skipped: images that could not be read when they were packed.

    Raises:
      UserError: a file is missing or damaged.
    """

    labels_are_cheap = True

    def __init__(self, folder: Path, *, max_open: int = 64):
        self.where, self.info = folder, read_info(folder)
        self.format = self.info["format"]
        self.class_names = self.info["class_names"]
        self.fingerprint = self.info["fingerprint"]
        if self.info["image_size"]:  # the bytes differ from the data set's
            self.fingerprint += "-" + self.info["checksum"]
        classes = len(self.class_names)
        try:
            with np.load(folder / "index.npz") as index:
                self.labels, self.checksums = index["labels"], index["checksums"]
                self._names = Names.checked(index["names"], index["ends"])
            shape, count = (len(self._names),), self.info["count"]
            if not self.labels.shape == self.checksums.shape == shape == (count,):
                raise ValueError(f"{len(self._names)} records of {count}")
            if self.labels.dtype != np.int32 or self.checksums.dtype != np.uint32:
                raise ValueError(f"labels of {self.labels.dtype}, sums of {self.checksums.dtype}")
            if not 0 <= self.labels.min(initial=0) <= self.labels.max(initial=0) < max(classes, 1):
                raise ValueError(f"labels beyond those of {classes} classes")
        except Exception as error:  # damaged bytes raise anything
            raise UserError(f"{folder / 'index.npz'} cannot be read: {error}") from None
        unreadable = [self._names[int(i)] for i in self.unreadable_indices]
        reason = "unreadable when packed"
        self.skipped = (Skipped.of(reason, unreadable),) if unreadable else ()
        self._per_shard, self._max_open = self.info["records_per_shard"], max_open
        self._readers: dict[int, Any] = {}  # the least recently used first
        self._lock = threading.Lock()
        count = -(-len(self.labels) // self._per_shard)
        self._paths = [folder / shard_name(i, count) for i in range(count)]
        missing = [path.name for path in self._paths if not path.is_file()]
        if missing:
            raise UserError(
                f"{folder} lacks {len(missing)} of its {count} files: {missing[0]}, …; "
                "copy them there, or prepare them again"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def unreadable_indices(self) -> np.ndarray:
        """Indices of the images that could not be read when they were packed."""
        return np.flatnonzero(self.checksums == zlib.crc32(UNREADABLE))

    def read(self, index: int) -> tuple[bytes, int]:
        """A record and its label.

        Raises:
          UnreadableImage: the image could not be read when it was packed, or the file is damaged.
        """
        shard, position = divmod(index, self._per_shard)
        try:
            with self._lock:
                data = self._reader(shard).read([position])[0]
        except (RuntimeError, IndexError, ValueError) as error:
            raise UnreadableImage(f"in {self._paths[shard]}: {error}") from None
        if not data:
            why = read_reasons(self.where / REASONS).get(index, "its reason is not known")
            raise UnreadableImage(f"it was unreadable when it was packed ({why})")
        if zlib.crc32(data) != self.checksums[index]:
            raise UnreadableImage(f"damaged in {self._paths[shard]}")
        return data, int(self.labels[index])

    def name(self, index: int) -> str:
        """The name of the record in the data set that was packed."""
        return self._names[index]

    def _reader(self, shard: int) -> Any:
        """The reader of a shard. Opening one too many closes the least recently used one."""
        reader = self._readers.pop(shard, None) or open_reader(self._paths[shard])
        self._readers[shard] = reader
        if len(self._readers) > self._max_open:
            self._readers.pop(next(iter(self._readers))).close()
        return reader

    def __getstate__(self) -> dict[str, Any]:  # another process opens its own readers
        return {name: value for name, value in self.__dict__.items() if name != "_lock"} | {
            "_readers": {}
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())


def is_prepared(folder: Path) -> bool:
    """Whether a folder holds a prepared split: its `info.json` says so, or is damaged.

    An `info.json` of others says nothing of our formats, and has no records beside it.
    """
    try:
        info = json.loads((folder / "info.json").read_text(encoding="utf-8"))
        if isinstance(info, dict) and str(info.get("format")).startswith("drifting_jax."):
            return True
    except ValueError:
        pass
    except OSError:
        return False
    return any(True for _ in folder.glob("*.array_record"))


def read_info(folder: Path) -> dict[str, Any]:
    """The contents of the `info.json` of a prepared split.

    Raises:
      UserError: it is missing, or of an unknown format.
    """
    path = folder / "info.json"
    try:
        info = read_json(path)
        if info["format"] in FORMATS:
            wrong = [name for name, kind in _NEEDED.items() if type(info.get(name)) is not kind]
            if not wrong and all(type(name) is str for name in info["class_names"]):
                if min(info["count"], info["image_size"], info["records_per_shard"] - 1) >= 0:
                    return info
                wrong = ["a number that is not below zero"]
            raise KeyError(", ".join(wrong))
        found = f"its format is {info['format']!r}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        found = f"{type(error).__name__}: {error}"
    raise UserError(f"{path} does not describe prepared records: {found}")


def shard_name(shard: int, count: int) -> str:
    """The name of a shard's file."""
    return f"{shard:05d}-of-{count:05d}.array_record"


def open_reader(path: Path) -> Any:
    """An ArrayRecordReader for single records at any position."""
    from array_record.python.array_record_module import ArrayRecordReader

    return ArrayRecordReader(str(path), "readahead_buffer_size:0")
