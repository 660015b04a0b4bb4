"""Image files in folders: found once, in parallel, and remembered with a fingerprint.

`<root>/<class>/…/<file>` gives every class folder, in sorted order, a label; files that lie in the
root alone are one class without labels. The list of a large data set is kept in the user's cache
and used again while no folder in the tree has changed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from drifting_jax.data.transforms import FailedRead, UnreadableImage
from drifting_jax.errors import UserError
from drifting_jax.files import write_npz

SUFFIXES = (".jpeg", ".jpg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
UNLABELLED = "unlabelled"  # the one class of a flat folder
_LAYOUT = 1  # of the kept lists
_SETTLED_NS = 2 * 10**9  # the coarsest clock of a file system
_THREADS = 16  # listing waits for the disk, or for a network


_KEPT = ("names", "ends", "labels", "class_names", "class_ends", "folders", "folder_ends",
         "changed")  # fmt: skip


class Names(Sequence[str]):
    """Many strings in two arrays: small to keep, to hash and to send to other processes."""

    def __init__(self, data: np.ndarray, ends: np.ndarray):
        self.data, self.ends = data, ends

    @classmethod
    def of(cls, names: Iterable[str]) -> Names:
        encoded = [os.fsencode(name) for name in names]
        ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        return cls(np.frombuffer(b"".join(encoded), np.uint8), ends)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(index)
        start = self.ends[index - 1] if index else 0
        return os.fsdecode(self.data[start : self.ends[index]].tobytes())


class FolderRecords:
    """The image files of a folder as encoded records.

    Attributes:
      where: the folder.
      class_names: names of the class folders, sorted; ["unlabelled"] for a flat folder.
      labels: [n] int32.
      fingerprint: of the names and labels of all files.
    """

    format = "folder"

    def __init__(self, root: Path, class_names: list[str], labels: np.ndarray, names: Names):
        self.where, self.class_names, self.labels, self._names = root, class_names, labels, names
        self.fingerprint = fingerprint(class_names, labels, names)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> tuple[bytes, int]:
        """The bytes of a file, and its label.

        Raises:
          UnreadableImage: the file cannot be read; FailedRead where that may change.
          UserError: the whole folder is gone.
        """
        try:
            with open(os.path.join(self.where, self._names[index]), "rb") as file:
                return file.read(), int(self.labels[index])
        except (PermissionError, IsADirectoryError) as error:
            raise UnreadableImage(str(error)) from None
        except OSError as error:
            if not os.path.isdir(self.where):
                raise UserError(f"{self.where} is gone: is the disk still there?") from None
            missing = isinstance(error, FileNotFoundError)
            raise (UnreadableImage if missing else FailedRead)(str(error)) from None

    def name(self, index: int) -> str:
        """The path of a file in the folder."""
        return self._names[index]


def fingerprint(class_names: list[str], labels: np.ndarray, names: Names) -> str:
    """16 hexadecimal digits that tell one list of records from another."""
    digest = hashlib.sha256("\0".join(class_names).encode(errors="surrogateescape"))
    for array in (labels.astype("<i4"), names.data, names.ends.astype("<i8")):
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]


def open_folder(root: Path, *, cache: Path | None = None) -> FolderRecords:
    """Finds the image files of a folder, or takes their list from the cache.

    Args:
      root: holds class folders (files at any depth in them), or files alone.
      cache: folder of the lists; None for the user's cache folder. One that does not exist and
        cannot be made is done without.

    Raises:
      UserError: there are no image files.
    """
    root = Path(os.path.realpath(root))
    name = hashlib.sha256(os.fsencode(root)).hexdigest()[:16]
    cache = cache or default_cache()
    kept = cache and cache / f"{name}-{_LAYOUT}.npz"
    found = _from_cache(root, kept) if kept else None
    if found is None:
        found = scan(root)
        if kept and _is_settled(found["changed"]):
            with contextlib.suppress(OSError):
                kept.parent.mkdir(parents=True, exist_ok=True)
                write_npz(kept, found)
    names = Names(found["names"], found["ends"])
    classes = list(Names(found["class_names"], found["class_ends"]))
    return FolderRecords(root, classes, found["labels"], names)


def default_cache() -> Path | None:
    """Where lists of files are kept: under XDG_CACHE_HOME or ~/.cache, if there is a home."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "drifting_jax"
    except RuntimeError:
        return None


def _is_settled(changed: np.ndarray) -> bool:
    """Whether the times at which folders changed will tell of the next change.

    Not where one changed just now, nor on a file system that keeps no such times.
    """
    return changed.min() > 0 and changed.max() < time.time_ns() - _SETTLED_NS


def scan(root: Path) -> dict[str, np.ndarray]:
    """Lists a tree: names relative to the root, labels, classes, and when each folder changed.

    Raises:
      UserError: there are no image files, or some lie beside the class folders.
    """
    top = _Listing.of(root, "")
    with ThreadPoolExecutor(_THREADS) as pool:
        trees = list(pool.map(lambda name: _walk(root, name), sorted(top.folders)))
    with_images = [(name, tree) for name, tree in zip(sorted(top.folders), trees, strict=True)
                   if any(listing.files for listing in tree)]  # fmt: skip
    if with_images and top.files:
        raise UserError(
            f"{root} holds image files ({sorted(top.files)[0]}, …) beside class folders "
            f"({with_images[0][0]}, …); expected one or the other"
        )
    if top.files:
        with_images = [(UNLABELLED, [top])]
    if not with_images:
        raise UserError(
            f"no image files in {root} or below: expected {', '.join(SUFFIXES[:4])}, … in a folder "
            f"for each class; found {_found(root)}"
        )
    classes = [name for name, _ in with_images]
    files = [sorted(file for listing in tree for file in listing.files) for _, tree in with_images]
    names = Names.of(file for of_class in files for file in of_class)
    class_names = Names.of(classes)
    visited = [top, *(listing for tree in trees for listing in tree)]
    folders = Names.of(listing.name for listing in visited)
    return {
        "names": names.data,
        "ends": names.ends,
        "labels": np.repeat(np.arange(len(files), dtype=np.int32), [len(x) for x in files]),
        "class_names": class_names.data,
        "class_ends": class_names.ends,
        "folders": folders.data,
        "folder_ends": folders.ends,
        "changed": np.array([listing.changed for listing in visited], np.int64),
    }


class _Listing:
    """One folder's image files and subfolders, by names relative to the root."""

    def __init__(self, name: str, files: list[str], folders: list[str], changed: int):
        self.name, self.files, self.folders, self.changed = name, files, folders, changed

    @classmethod
    def of(cls, root: Path, name: str) -> _Listing:
        files, folders = [], []
        try:
            changed = os.stat(os.path.join(root, name)).st_mtime_ns
            with os.scandir(os.path.join(root, name)) as entries:
                for entry in entries:
                    if entry.name.startswith(".") or entry.name == "lost+found":
                        continue
                    inner = os.path.join(name, entry.name)
                    if _is_folder(entry):
                        folders.append(inner)
                    elif entry.name.lower().endswith(SUFFIXES):
                        files.append(inner)
        except OSError as error:
            raise UserError(f"cannot list {root / name}: {error.strerror or error}") from None
        return cls(name, files, folders, changed)


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _walk(root: Path, name: str) -> list[_Listing]:
    """A folder and all below it, each once however links may loop."""
    pending, found, seen = [name], [], set()
    while pending:
        inner = pending.pop()
        real = os.path.realpath(os.path.join(root, inner))
        if real in seen:
            continue
        seen.add(real)
        found.append(_Listing.of(root, inner))
        pending.extend(found[-1].folders)
    return found


def _from_cache(root: Path, kept: Path) -> dict[str, np.ndarray] | None:
    """A kept list, if none of the folders that it was made from has changed."""
    try:
        with np.load(kept) as file:
            found = {name: file[name] for name in _KEPT}
        folders = Names(found["folders"], found["folder_ends"])
        with ThreadPoolExecutor(_THREADS) as pool:
            changed = pool.map(lambda x: os.stat(os.path.join(root, x)).st_mtime_ns, folders)
            return found if list(changed) == found["changed"].tolist() else None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None


def _found(root: Path) -> str:
    names = sorted(os.listdir(root))
    return ", ".join(names[:8]) + ", …" * (len(names) > 8) if names else "nothing"
