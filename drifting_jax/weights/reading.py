"""What the readers of weight files share: mapped bytes, zip members, JSON and nested names."""

import itertools
import mmap
import os
import zipfile
from pathlib import Path
from typing import Any

from drifting_jax.errors import UserError
from drifting_jax.files import parse_json

_MAX_DEPTH, _MAX_CONTAINERS = 32, 1_000_000  # no real file has as many


def map_file(path: Path) -> mmap.mmap:
    """The bytes of a file, mapped into memory read-only."""
    try:
        with open(path, "rb") as file:
            if not os.fstat(file.fileno()).st_size:
                raise UserError(f"{path} is empty")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None


def zip_members(path: Path) -> dict[str, zipfile.ZipInfo]:
    """The members of a zip file by name."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except Exception as error:  # damaged bytes raise more than BadZipFile
        raise UserError(f"{path} is a zip file that is cut off or damaged ({error})") from None
    by_name = {info.filename: info for info in members}
    if len(by_name) != len(members):
        raise UserError(f"{path} holds two members of one name")
    return by_name


def read_json(path: Path, start: int = 0, end: int | None = None) -> dict[str, Any]:
    """The JSON object in bytes `start` to `end` of a file."""
    return parse_json(map_file(path)[start:end], path)


def flatten(tree: Any, leaves: tuple[type, ...], origin: object) -> dict[str, Any]:
    """{"outer/inner/0": leaf} of all leaves of these types in mappings, lists and tuples.

    Args:
      tree: nested mappings, lists and tuples.
      leaves: types of the leaves; everything else is ignored.
      origin: what to call the tree in an error.

    Raises:
      UserError: two leaves share a name, a key is neither text nor an integer, or the tree is
        nested too deeply.
    """
    found: dict[str, Any] = {}
    containers = itertools.count(1)

    def visit(node: Any, keys: tuple) -> None:
        if isinstance(node, leaves):
            if not all(isinstance(key, str | int) for key in keys):
                raise UserError(f"{origin} holds an array under {keys!r}, which is no name")
            name = "/".join(map(str, keys))
            if name in found:
                raise UserError(f"{origin} holds two arrays that are called {name!r}")
            found[name] = node
        elif isinstance(node, dict | list | tuple):
            if len(keys) > _MAX_DEPTH or next(containers) > _MAX_CONTAINERS:
                raise UserError(f"{origin} is nested without end")
            # Not node.items(): a pickle may have set an attribute of that name.
            for key, child in dict.items(node) if isinstance(node, dict) else enumerate(node):
                visit(child, (*keys, key))

    visit(tree, ())
    return found
