"""A file of records that are appended one by one, and found again after a kill."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

_HEADER = struct.Struct("<QI")  # size of the record in bytes, its CRC-32 with all bits inverted


class Journal:
    """The records of an unfinished shard. Opening it drops what follows the last whole record.

    Attributes:
      checksums: CRC-32 of each record.
    """

    def __init__(self, path: Path):
        path.touch()
        self._file = open(path, "r+b")  # noqa: SIM115
        self.checksums: list[int] = []
        self._end = 0
        for _ in self._read():
            pass
        self._file.truncate(self._end)
        self._file.seek(self._end)

    def __len__(self) -> int:
        return len(self.checksums)

    def append(self, data: bytes) -> None:
        """Adds a record. A kill in the middle keeps all records before it."""
        checksum = zlib.crc32(data)
        self._file.write(_HEADER.pack(len(data), checksum ^ 0xFFFFFFFF) + data)
        self._file.flush()
        self.checksums.append(checksum)

    def records(self) -> Iterator[bytes]:
        """All records, from the first on."""
        self.checksums = []
        return self._read()

    def close(self) -> None:
        self._file.close()

    def _read(self) -> Iterator[bytes]:
        end = self._file.seek(0, os.SEEK_END)
        self._file.seek(0)
        while len(header := self._file.read(_HEADER.size)) == _HEADER.size:
            size, turned = _HEADER.unpack(header)
            if size > end - self._file.tell():
                return
            data = self._file.read(size)
            checksum = zlib.crc32(data)
            if checksum ^ turned != 0xFFFFFFFF:  # zeros, which a lost block may leave, fail too
                return
            self.checksums.append(checksum)
            self._end = self._file.tell()
            yield data
