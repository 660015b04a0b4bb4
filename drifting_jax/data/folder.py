"""Image files in folders: listed in parallel, and the list kept in a cache.

Every class folder `<root>/<class>/` has a label, in sorted order, and may hold files at any depth.
Files that lie in the root alone are one class without labels. The list of files is kept in the
user's cache folder and used again while no folder of the tree has changed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from drifting_jax.data.facts import Skipped
from drifting_jax.data.transforms import FailedRead, UnreadableImage
from drifting_jax.digests import SHORT, digest_bytes
from drifting_jax.errors import UserError
from drifting_jax.files import write_npz

SUFFIXES = (".jpeg", ".jpg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
UNLABELLED = "unlabelled"  # the one class of a flat folder
_LAYOUT = 1  # version of the cached lists
_SETTLED_NS = 2 * 10**9  # the coarsest clock of a file system
_THREADS = 16  # listing waits for the disk or the network


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


class FolderRecords:
    """The image files of a folder as encoded records.

    Attributes:
      where: the folder.
      class_names: names of the class folders, sorted; ["unlabelled"] for a flat folder.
      labels: [n] int32.
      fingerprint: 16 digits of the names and labels of all files.
      skipped: files that are no images, and class folders without images.
    """

    format = "folder"
    labels_are_cheap = True

    def __init__(
        self,
        root: Path,
        class_names: list[str],
        labels: np.ndarray,
        names: Names,
        *,
        skipped: tuple[Skipped, ...] = (),
    ):
        self.where, self.class_names, self.labels, self._names = root, class_names, labels, names
        self.skipped = skipped
        self.fingerprint = digest_bytes(
            "\0".join(class_names).encode(errors="surrogateescape"),
            labels.astype("<i4").tobytes(),
            names.data.tobytes(),
            names.ends.astype("<i8").tobytes(),
            digits=SHORT,
        )

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> tuple[bytes, int]:
        """The bytes of a file, and its label.

        Raises:
          UnreadableImage: the file cannot be read; FailedRead if another attempt may succeed.
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
        """The path of a file, relative to the folder."""
        return self._names[index]


@dataclasses.dataclass(frozen=True)
class FileList:
    """The image files of a tree, as the cache keeps them.

    Attributes:
      names: [n] paths relative to the root, class by class, sorted within each.
      labels: [n] int32.
      class_names: names of the classes.
      folders: all folders that were listed.
      changed: [folders] int64, nanoseconds at which each folder last changed.
      skipped: see `FolderRecords`.
    """

    names: Names
    labels: np.ndarray
    class_names: Names
    folders: Names
    changed: np.ndarray
    skipped: tuple[Skipped, ...]

    def write(self, path: Path) -> None:
        """Writes an .npz file that `read` reads."""
        skipped = json.dumps([dataclasses.astuple(entry) for entry in self.skipped])
        arrays = {
            "names": self.names.data,
            "ends": self.names.ends,
            "labels": self.labels,
            "class_names": self.class_names.data,
            "class_ends": self.class_names.ends,
            "folders": self.folders.data,
            "folder_ends": self.folders.ends,
            "changed": self.changed,
            "skipped": np.frombuffer(skipped.encode(), np.uint8),
        }
        write_npz(path, arrays)

    @classmethod
    def read(cls, path: Path) -> FileList | None:
        """The list that a file holds; None for a missing, damaged or older file."""
        try:
            with np.load(path) as file:
                skipped = json.loads(file["skipped"].tobytes())
                found = cls(
                    names=Names.checked(file["names"], file["ends"]),
                    labels=file["labels"],
                    class_names=Names.checked(file["class_names"], file["class_ends"]),
                    folders=Names.checked(file["folders"], file["folder_ends"]),
                    changed=file["changed"],
                    skipped=tuple(
                        Skipped(str(r), int(n), tuple(map(str, x))) for r, n, x in skipped
                    ),
                )
            whole = (
                found.labels.shape == (len(found.names),)
                and found.changed.shape == (len(found.folders),)
                and found.labels.dtype == np.int32
                and found.changed.dtype == np.int64
                and len(found.folders) > 0
                and found.labels.min(initial=0) >= 0
                and found.labels.max(initial=0) < len(found.class_names)
            )
            return found if whole else None
        except Exception:  # damaged bytes raise anything
            return None

    def is_settled(self) -> bool:
        """Whether the times of the folders will reveal the next change.

        They will not if a folder changed just now, or if the file system keeps no such times.
        """
        return bool(self.changed.min() > 0 and self.changed.max() < time.time_ns() - _SETTLED_NS)

    def is_current(self, root: Path) -> bool:
        """Whether no folder has changed since it was listed."""
        try:
            with ThreadPoolExecutor(_THREADS) as pool:
                changed = pool.map(
                    lambda name: os.stat(os.path.join(root, name)).st_mtime_ns, self.folders
                )
                return list(changed) == self.changed.tolist()
        except (OSError, ValueError):
            return False


def open_folder(root: Path, *, cache: Path | None = None) -> FolderRecords:
    """Finds the image files of a folder, or takes their list from the cache.

    Args:
      root: holds class folders (files at any depth in them), or files alone.
      cache: folder of the lists; None for the user's cache folder. A folder that cannot be made is
        not used.

    Raises:
      UserError: there are no image files.
    """
    root = Path(os.path.realpath(root))
    name = digest_bytes(os.fsencode(root), digits=SHORT)
    cache = cache or default_cache()
    kept = cache and cache / f"{name}-{_LAYOUT}.npz"
    found = FileList.read(kept) if kept else None
    if found is None or not found.is_current(root):
        found = scan(root)
        if kept and found.is_settled():
            with contextlib.suppress(OSError):
                kept.parent.mkdir(parents=True, exist_ok=True)
                found.write(kept)
    return FolderRecords(
        root, list(found.class_names), found.labels, found.names, skipped=found.skipped
    )


def default_cache() -> Path | None:
    """The cache folder of file lists, in XDG_CACHE_HOME or ~/.cache; None without a home."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "drifting_jax"
    except RuntimeError:
        return None


def scan(root: Path) -> FileList:
    """Lists all image files of a tree.

    Raises:
      UserError: there are no image files, or some lie beside the class folders.
    """
    top = _Listing.of(root, "")
    class_folders = sorted(top.folders)
    with ThreadPoolExecutor(_THREADS) as pool:
        trees = list(pool.map(lambda name: _walk(root, name), class_folders))
    by_class = {
        name: sorted(file for listing in tree for file in listing.files)
        for name, tree in zip(class_folders, trees, strict=True)
    }
    empty = [name for name, files in by_class.items() if not files]
    by_class = {name: files for name, files in by_class.items() if files}
    if by_class and top.files:
        raise UserError(
            f"{root} holds image files ({sorted(top.files)[0]}, …) beside class folders "
            f"({next(iter(by_class))}, …); expected one or the other"
        )
    if top.files:
        by_class = {UNLABELLED: sorted(top.files)}
    if not by_class:
        raise UserError(
            f"no image files in {root} or below: expected {', '.join(SUFFIXES[:4])}, … in a folder "
            f"for each class; found {_found(root)}"
        )
    listings = [top, *(listing for tree in trees for listing in tree)]
    counts = [len(files) for files in by_class.values()]
    return FileList(
        names=Names.of(file for files in by_class.values() for file in files),
        labels=np.repeat(np.arange(len(counts), dtype=np.int32), counts),
        class_names=Names.of(by_class),
        folders=Names.of(listing.name for listing in listings),
        changed=np.array([listing.changed for listing in listings], np.int64),
        skipped=_skipped(listings, [] if top.files else empty),
    )


@dataclasses.dataclass(frozen=True)
class _Listing:
    """The entries of one folder, by paths relative to the root.

    Attributes:
      name: of the folder.
      changed: when it last changed, in nanoseconds.
      files: image files. folders: subfolders. skipped: all other files.
    """

    name: str
    changed: int
    files: list[str]
    folders: list[str]
    skipped: list[str]

    @classmethod
    def of(cls, root: Path, name: str) -> _Listing:
        files: list[str] = []
        folders: list[str] = []
        skipped: list[str] = []
        try:
            changed = os.stat(os.path.join(root, name)).st_mtime_ns
            with os.scandir(os.path.join(root, name)) as entries:
                for entry in entries:
                    is_hidden = entry.name.startswith(".") or entry.name == "lost+found"
                    if _is_folder(entry):
                        kind = None if is_hidden else folders
                    else:
                        is_image = entry.name.lower().endswith(SUFFIXES) and not is_hidden
                        kind = files if is_image else skipped
                    if kind is not None:
                        kind.append(os.path.join(name, entry.name))
        except OSError as error:
            raise UserError(f"cannot list {root / name}: {error.strerror or error}") from None
        return cls(name, changed, files, folders, skipped)


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _walk(root: Path, name: str) -> list[_Listing]:
    """A folder and all folders below it. Links that form a loop are followed once."""
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


def _skipped(listings: list[_Listing], empty: list[str]) -> tuple[Skipped, ...]:
    """Skipped files by their ending, the most frequent first, and class folders without images."""
    by_reason = defaultdict(list)
    for listing in listings:
        for path in listing.skipped:
            name = os.path.basename(path)
            ending = os.path.splitext(name)[1].lower() or "no ending"
            by_reason["hidden" if name.startswith(".") else ending].append(path)
    if empty:
        by_reason["class folder without images"] = empty
    found = [Skipped.of(reason, names) for reason, names in by_reason.items()]
    return tuple(sorted(found, key=lambda entry: (-entry.count, entry.reason)))


def _found(root: Path) -> str:
    names = sorted(os.listdir(root))
    return ", ".join(names[:8]) + ", …" * (len(names) > 8) if names else "nothing"
