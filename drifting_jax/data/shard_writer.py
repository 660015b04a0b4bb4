"""Writes ArrayRecord files shard by shard. A kill loses no whole record.

The records of an unfinished file stand in a journal, `00003.journal`. Each is appended with its
checksum, so that the next start finds every whole record.
"""

from __future__ import annotations

import functools
import json
import os
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from drifting_jax.data.journal import Journal
from drifting_jax.data.names import Names
from drifting_jax.data.shards import REASONS, UNREADABLE, open_reader, shard_name
from drifting_jax.data.unreadable import read_reasons
from drifting_jax.errors import UserError
from drifting_jax.files import read_json, write_bytes, write_json, write_npz

_WRITER_OPTIONS = "group_size:1,uncompressed"  # records are read one by one; JPEGs do not shrink


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
