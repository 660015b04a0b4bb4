"""SHA-256 digests in hexadecimal digits: what tells weights, files, images or settings apart.

Digests are written to disk and compared with what is on the disk, so for one input each function
returns the same digits in every version.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

SHORT = 16  # digits; all of them are 64


def digest_bytes(*parts: bytes, digits: int = 64) -> str:
    """The first digits of the digest of byte strings, one after another."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
    return found.hexdigest()[:digits]


def digest_values(*parts: Any) -> str:
    """16 digits of settings and arrays: arrays by their bytes, other values by their `repr`."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part.tobytes() if isinstance(part, np.ndarray) else repr(part).encode())
        found.update(b"\0")
    return found.hexdigest()[:SHORT]


def digest_file(path: Path, *, digits: int = 64) -> str:
    """The first digits of the digest of a file. Raises OSError if the file cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:digits]


def digest_params(params: Mapping[str, Any]) -> str:
    """64 digits of nested parameters: the sorted names, dtypes, shapes and little-endian bytes."""
    found = hashlib.sha256()
    for name, array in sorted(_named(params).items()):
        array = np.ascontiguousarray(array)
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        found.update(f"{name} {array.dtype.name} {array.shape}\n".encode())
        found.update(little.tobytes())
    return found.hexdigest()


def fingerprint_variables(variables: Mapping[str, Any]) -> str:
    """16 digits of nested variables: the sorted names and the bytes, without dtypes and shapes."""
    found = hashlib.sha256()
    for name, array in sorted(_named(variables).items()):
        found.update(name.encode() + np.ascontiguousarray(array).tobytes())
    return found.hexdigest()[:SHORT]


def _named(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a/b/c": array} of nested mappings."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        inner = isinstance(value, Mapping)
        found |= _named(value, f"{prefix}{name}/") if inner else {f"{prefix}{name}": value}
    return found
