"""Records packed into ArrayRecord files. A kill while they are written loses no whole record.

A prepared split is a folder with the files `00003-of-00064.array_record` of equal numbers of
records, `index.npz` (labels, names, checksums), `unreadable.jsonl` (why some images could not be
read) if there are such, and `info.json`, which is written last. The records
of an unfinished file stand in a journal, `00003.journal`. Each is appended with its checksum, so
that the next start finds every whole record.
"""

from __future__ import annotations

import functools
import json
import os
import threading
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from drifting_jax.data.facts import Skipped
from drifting_jax.data.journal import Journal
from drifting_jax.data.names import Names
from drifting_jax.data.transforms import UnreadableImage
from drifting_jax.data.unreadable import read_reasons
from drifting_jax.errors import UserError
from drifting_jax.files import read_json, write_bytes, write_json, write_npz

IMAGES, LATENTS = FORMATS = ("drifting_jax.images", "drifting_jax.latents")
UNREADABLE = b""  # the record of an image that could not be read when it was packed
REASONS = "unreadable.jsonl"
_NEEDED = {"class_names": list, "fingerprint": str, "image_size": int, "count": int,
           "records_per_shard": int, "checksum": str}  # fmt: skip
_WRITER_OPTIONS = "group_size:1,uncompressed"  # records are read one by one; JPEGs do not shrink


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


def _write_and_read_back(path: Path, records: Iterable[bytes]) -> list[int]:
    """Writes a file of records, reads it again, and returns the checksums of what it holds."""
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(path), _WRITER_OPTIONS)
    try:
        for data in records:
            writer.write(data)
    finally:
        writer.close()
    with open(path, "rb") as file:
        os.fsync(file.fileno())
    reader = open_reader(path)
    try:  # one by one, since a whole shard may not fit into memory
        return [zlib.crc32(reader.read([i])[0]) for i in range(reader.num_records())]
    finally:
        reader.close()


class ShardWriter:
    """Writes one split, shard by shard, and continues what an earlier start has written.

    Args:
      folder: of the split.
      source: the `records.Records` that are packed.
      plan: settings that decide the bytes of records, with `format`. They are written to plan.json,
        and `open` refuses to continue with others.
      records_per_shard: of all files but the last.
    """

    def __init__(
        self, folder: Path, source: Any, *, plan: Mapping[str, Any], records_per_shard: int
    ):
        self.folder, self._source = folder, source
        self.count = len(source)
        self.records_per_shard = records_per_shard
        self.num_shards = -(-self.count // records_per_shard)
        self._plan = {
            **plan,
            "count": self.count,
            "records_per_shard": records_per_shard,
            "fingerprint": source.fingerprint,
        }

    def open(self) -> None:
        """Makes the folder, or checks that it was begun with the same plan.

        Raises:
          UserError: the folder belongs to another plan, or holds other files.
        """
        path = self.folder / ("info.json" if self.finished else "plan.json")
        self.folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            if any(entry.name != ".lock" for entry in self.folder.iterdir()):
                raise UserError(
                    f"--out must be a new folder, or one to go on in; {self.folder} holds other "
                    "files"
                )
            write_json(path, self._plan)
        found = read_json(path)
        for name, wanted in json.loads(json.dumps(self._plan)).items():
            if wanted != found.get(name):
                raise UserError(
                    f"{self.folder} was begun with {name}={found.get(name)!r}; found {wanted!r}: "
                    "say the same again, or choose another --out"
                )

    @property
    def finished(self) -> bool:
        """Whether the split is complete."""
        return (self.folder / "info.json").is_file()

    def range(self, shard: int) -> range:
        """The records of a shard."""
        start = shard * self.records_per_shard
        return range(start, min(start + self.records_per_shard, self.count))

    def is_done(self, shard: int) -> bool:
        """Whether a shard is written and verified."""
        return self._sums(shard).is_file() and self._path(shard).is_file()

    def journal(self, shard: int) -> Journal:
        """Opens the journal of a shard that is not done."""
        return Journal(self._journal(shard))

    def name(self, index: int) -> str:
        """What a record of the source is called."""
        return self._source.name(index)

    def note_unreadable(self, shard: int, index: int, reason: str) -> dict[int, str]:
        """Writes down why an image of a shard cannot be read.

        Returns:
          {index: reason} of all that are written down so far, by earlier starts too.
        """
        line = json.dumps({"index": index, "name": self.name(index), "reason": reason})
        with self._reasons_file(shard).open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        self._reasons[index] = reason
        return self._reasons

    def finish(self, shard: int, journal: Journal) -> None:
        """Writes the shard from its full journal, and reads it back.

        Raises:
          UserError: the shard cannot be written, or does not hold what was written.
        """
        partial = self._path(shard).with_suffix(".partial")
        try:
            found = _write_and_read_back(partial, journal.records())
        except (RuntimeError, OSError, IndexError) as error:
            reason = str(error).partition("\n")[0]
            raise UserError(
                f"cannot write {partial} ({reason}): make room, and run the same again"
            ) from None
        if found != journal.checksums or len(found) != len(self.range(shard)):
            raise UserError(
                f"{partial} does not hold what was written to it ({len(found)} records of "
                f"{len(self.range(shard))}): is the disk full or failing? Run the same again"
            )
        os.replace(partial, self._path(shard))
        write_npz(self._sums(shard), {"checksums": np.array(found, np.uint32)})
        journal.close()
        self._journal(shard).unlink()

    def complete(self) -> dict[str, Any]:
        """Writes the index of all shards, then `info.json`, whose contents it returns."""
        by_shard = []
        for shard in range(self.num_shards):
            with np.load(self._sums(shard)) as file:
                by_shard.append(file["checksums"])
        checksums = np.concatenate(by_shard)
        names = Names.of(self._source.name(i) for i in range(self.count))
        write_npz(
            self.folder / "index.npz",
            {"labels": np.asarray(self._source.labels, np.int32), "checksums": checksums,
             "names": names.data, "ends": names.ends},
        )  # fmt: skip
        unreadable = np.flatnonzero(checksums == zlib.crc32(UNREADABLE)).tolist()
        if unreadable:
            self.__dict__.pop("_reasons", None)  # other processes have written theirs
            reasons = [(i, self.name(i), self._reasons.get(i, "")) for i in unreadable]
            lines = [json.dumps({"index": i, "name": n, "reason": r}) + "\n" for i, n, r in reasons]
            write_bytes(self.folder / REASONS, "".join(lines).encode())
        record = {
            **self._plan,
            "unreadable": len(unreadable),
            "checksum": f"{zlib.crc32(checksums.tobytes()):08x}",
            "class_names": list(self._source.class_names),
        }
        write_json(self.folder / "info.json", record)
        for shard in range(self.num_shards):
            self._sums(shard).unlink(missing_ok=True)
            self._journal(shard).unlink(missing_ok=True)
            self._reasons_file(shard).unlink(missing_ok=True)
        (self.folder / "plan.json").unlink(missing_ok=True)
        return record

    def _path(self, shard: int) -> Path:
        return self.folder / shard_name(shard, self.num_shards)

    def _journal(self, shard: int) -> Path:
        return self.folder / f"{shard:05d}.journal"

    def _reasons_file(self, shard: int) -> Path:
        return self.folder / f"{shard:05d}.unreadable"

    @functools.cached_property
    def _reasons(self) -> dict[int, str]:
        found: dict[int, str] = {}
        for path in sorted(self.folder.glob("*.unreadable")):
            found |= read_reasons(path)
        return found

    def _sums(self, shard: int) -> Path:
        return self.folder / f"{shard:05d}.checksums.npz"
