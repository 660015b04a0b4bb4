"""Writes files whole or not at all, and reads JSON that may be damaged and paths of users."""

import contextlib
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from drifting_jax.errors import UserError


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Writes a file under another name and renames it: a kill leaves the old or the new file."""
    path = Path(path)
    partial = path.with_name(f"{path.name}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: str | os.PathLike, record: Mapping[str, Any]) -> None:
    """Writes an indented JSON file, as `write_bytes`."""
    write_bytes(path, (json.dumps(record, indent=2, allow_nan=False) + "\n").encode())


def write_npz(path: str | os.PathLike, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes an .npz file of arrays, as `write_bytes`."""
    buffer = io.BytesIO()
    named: dict[str, Any] = dict(arrays)
    np.savez(buffer, **named)
    write_bytes(path, buffer.getvalue())


def check_new(folder: Path) -> None:
    """Raises UserError if a folder that is to be written exists."""
    if folder.exists():
        raise UserError(f"what is written must be a new folder; {folder} exists")


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yields a folder to write into, which becomes `path` if the block ends without an error.

    So a folder of that name is whole. Missing parents are made; `path` must not exist.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield partial
        partial.chmod(0o755)  # a temporary folder is for its owner alone
        partial.rename(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def expanded(path: str) -> str:
    """Returns a path that a user gave, with the home folder for a `~` in front.

    Other text comes back unchanged, `hf://owner/repo` among it.

    Raises:
      UserError: there is no such home folder, or no path can hold the text.
    """
    if "\0" in path:
        raise UserError(f"expected a path, found {path!r}, which holds a zero character")
    if not path.startswith("~"):
        return path
    found = path if os.environ.get("HOME") == "" else os.path.expanduser(path)
    if found.startswith("~"):
        raise UserError(f"expected a home folder for {path}, found none: write the whole path")
    return found


def cache_folder() -> Path | None:
    """Returns the user's folder for what can be made again; None where there is no home folder.

    It is `drifting_jax` in XDG_CACHE_HOME, or in ~/.cache.
    """
    try:
        return Path(expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache")) / "drifting_jax"
    except UserError:
        return None


def shown(text: str) -> str:
    """Returns text that any UTF-8 file can hold, with � for bytes of a name that are not UTF-8."""
    return re.sub("[\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", text)


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
      OSError: the file cannot be read.
      UserError: it holds something else.
    """
    return parse_json(Path(path).read_bytes(), path)


def read_json_lines(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The objects of a file of one JSON object a line; other lines are left out.

    Raises:
      OSError: the file cannot be read.
    """
    found = []
    for line in Path(path).read_bytes().splitlines():
        with contextlib.suppress(UserError):
            found.append(parse_json(line, path))
    return found


def parse_json(data: bytes, origin: object) -> dict[str, Any]:
    """The JSON object in bytes.

    Args:
      data: the text.
      origin: what to call it in an error.

    Raises:
      UserError: it is no JSON object, or a name stands twice in one.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError("a name stands twice")
        return dict(pairs)

    try:
        found = json.loads(data, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:  # also of bytes that are not UTF-8
        raise UserError(f"the JSON of {origin} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"the JSON of {origin} is no object but a {type(found).__name__}")
    return found
