"""The list of the image files of a tree: made in parallel, stored, and compared with the tree."""

from __future__ import annotations

import dataclasses
import json
import os
import time
import zlib
from collections import defaultdict
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from drifting_jax.data.facts import Skipped
from drifting_jax.data.image_formats import advice_for
from drifting_jax.data.names import Names
from drifting_jax.errors import UserError
from drifting_jax.files import write_npz

UNLABELLED = "unlabelled"  # the one class of a flat folder
_SETTLED_NS = 2 * 10**9  # the coarsest clock of a file system
_State = tuple[int, int, int, int, int]
_STATES = 5  # numbers in a state
_LARGEST = 2**63 - 1
_THREADS = 4  # listing waits for the disk; more threads wait for the interpreter's lock


@dataclasses.dataclass(frozen=True)
class FileList:
    """The image files of a tree, as the cache keeps them.

    Attributes:
      names: [n] paths relative to the root, class by class, sorted within each.
      labels: [n] int32.
      class_names: names of the classes.
      folders: all folders that were listed.
      states: [folders, 5] int64, the `_folder_state` of each.
      skipped: see `FolderRecords`.
    """

    names: Names
    labels: np.ndarray
    class_names: Names
    folders: Names
    states: np.ndarray
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
            "states": self.states,
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
                    states=file["states"],
                    skipped=tuple(
                        Skipped(str(r), int(n), tuple(map(str, x))) for r, n, x in skipped
                    ),
                )
            return found if found._is_whole() else None
        except Exception:  # damaged bytes raise anything
            return None

    def _is_whole(self) -> bool:
        labels, states = self.labels, self.states
        return bool(
            (labels.shape, labels.dtype) == ((len(self.names),), np.int32)
            and (states.shape, states.dtype) == ((len(self.folders), _STATES), np.int64)
            and len(self.folders) > 0
            and labels.min(initial=0) >= 0
            and labels.max(initial=0) < len(self.class_names)
        )

    def is_settled(self) -> bool:
        """Whether the times of the folders will reveal the next change.

        They will not if a folder changed just now, or if the file system keeps no such times.
        """
        changed = self.states[:, 0]
        return bool(changed.min() > 0 and changed.max() < time.time_ns() - _SETTLED_NS)

    def is_current(self, root: Path) -> bool:
        """Whether no folder has changed since it was listed."""
        folders = list(self.folders)

        def is_unchanged(part: range) -> bool:
            return all(
                _folder_state(os.path.join(root, folders[i])) == tuple(self.states[i]) for i in part
            )

        parts = [range(first, len(folders), _THREADS) for first in range(_THREADS)]
        try:
            with ThreadPoolExecutor(_THREADS) as pool:
                return all(pool.map(is_unchanged, parts))
        except (OSError, ValueError):
            return False


def _folder_state(path: str, names: Sequence[str] | None = None) -> _State:
    """What tells that a folder has changed.

    Times alone do not: archives and images of file systems may set them to a fixed date.

    Args:
      path: of the folder.
      names: of its entries; None to list them.

    Returns:
      mtime and ctime in nanoseconds; inode; number of entries, and the sum of their names'
      checksums, which does not depend on their order.
    """
    status = os.stat(path)
    if names is None:
        found = os.listdir(os.fsencode(path))
    else:  # encoded together, which takes a tenth of the time
        found = os.fsencode("\0".join(names)).split(b"\0") if names else []
    return (
        status.st_mtime_ns,
        status.st_ctime_ns,
        status.st_ino & _LARGEST,  # some file systems use all 64 bits
        len(found),
        sum(map(zlib.crc32, found)),
    )


def scan(root: Path, suffixes: Collection[str]) -> FileList:
    """Lists all image files of a tree.

    Args:
      root: the tree.
      suffixes: endings of image files, in lower case.

    Raises:
      UserError: there are no image files, or some lie beside the class folders.
    """
    top = _Listing.of(root, "", suffixes)
    class_folders = sorted(top.folders)
    with ThreadPoolExecutor(_THREADS) as pool:
        trees = list(pool.map(lambda name: _walk(root, name, suffixes), class_folders))
    listings = [top, *(listing for tree in trees for listing in tree)]
    by_class = {
        name: sorted(file for listing in tree for file in listing.files)
        for name, tree in zip(class_folders, trees, strict=True)
    }
    empty = [name for name, files in by_class.items() if not files]
    by_class = {name: files for name, files in by_class.items() if files}
    if by_class and top.files:
        raise UserError(
            f"{root} holds image files ({sorted(top.files)[0]}, …) beside class folders "
            f"({next(iter(by_class))}, …); expected one or the other: move the files away"
        )
    if top.files:
        by_class = {UNLABELLED: sorted(top.files)}
    if not by_class:
        raise UserError(
            f"no image files in {root} or below: expected .jpeg, .jpg, .png, .webp, … in a folder "
            f"for each class; found {_found(root)}{_advice(listings)}"
        )
    counts = [len(files) for files in by_class.values()]
    return FileList(
        names=Names.of(file for files in by_class.values() for file in files),
        labels=np.repeat(np.arange(len(counts), dtype=np.int32), counts),
        class_names=Names.of(by_class),
        folders=Names.of(listing.name for listing in listings),
        states=np.array([listing.state for listing in listings], np.int64),
        skipped=_skipped(listings, [] if top.files else empty),
    )


@dataclasses.dataclass(frozen=True)
class _Listing:
    """The entries of one folder, by paths relative to the root.

    Attributes:
      name: of the folder.
      state: see `_folder_state`.
      files: image files. folders: subfolders. skipped: all other files. All are sorted.
    """

    name: str
    state: _State
    files: list[str]
    folders: list[str]
    skipped: list[str]

    @classmethod
    def of(cls, root: Path, name: str, suffixes: Collection[str]) -> _Listing:
        files: list[str] = []
        folders: list[str] = []
        skipped: list[str] = []
        path = os.path.join(root, name)
        try:
            with os.scandir(path) as found:
                entries = sorted((entry.name, is_folder(entry)) for entry in found)
            state = _folder_state(path, [entry for entry, _ in entries])
        except OSError as error:
            raise UserError(f"cannot list {root / name}: {error.strerror or error}") from None
        start = f"{name}/" if name else ""
        for entry, holds_others in entries:
            if is_hidden(entry):
                kind = None if holds_others else skipped
            elif holds_others:
                kind = folders
            else:
                kind = files if has_suffix(entry, suffixes) else skipped
            if kind is not None:
                kind.append(start + entry)
        return cls(name, state, files, folders, skipped)


def is_hidden(name: str) -> bool:
    """Whether an entry of a folder is none of the user's."""
    return name.startswith(".") or name == "lost+found"


def has_suffix(name: str, suffixes: Collection[str]) -> bool:
    """Whether a name has one of these endings, in any case."""
    return name[name.rfind(".") :].lower() in suffixes  # os.path.splitext takes half a scan's time


def is_folder(entry: os.DirEntry) -> bool:
    """Whether an entry is a folder or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _walk(root: Path, name: str, suffixes: Collection[str]) -> list[_Listing]:
    """A folder and all folders below it. Links that form a loop are followed once."""
    pending, found, seen = [name], [], set()
    while pending:
        inner = pending.pop()
        real = os.path.realpath(os.path.join(root, inner))
        if real in seen:
            continue
        seen.add(real)
        found.append(_Listing.of(root, inner, suffixes))
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
    for ending in [ending for ending in by_reason if advice_for(ending)]:
        by_reason[f"{ending}, which needs: {advice_for(ending)}"] = by_reason.pop(ending)
    if empty:
        by_reason["class folder without images"] = empty
    found = [Skipped.of(reason, names) for reason, names in by_reason.items()]
    return tuple(sorted(found, key=lambda entry: (-entry.count, entry.reason)))


def _advice(listings: list[_Listing]) -> str:
    """What would read files that the installed Pillow does not read."""
    names = [path for listing in listings for path in listing.skipped]
    endings = sorted({os.path.splitext(name)[1].lower() for name in names})
    return "".join(f"; {end} needs: {advice_for(end)}" for end in endings if advice_for(end))


def _found(root: Path) -> str:
    names = sorted(os.listdir(root))
    return ", ".join(names[:8]) + ", …" * (len(names) > 8) if names else "nothing"
