"""Finds the folder of a split: `train/`, `Test/`, `images/val/`, `flowers/flowers/` or the path.

A folder that can be read in two ways is refused with a message that shows both.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
import shlex
from collections import deque
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from drifting_jax.data.facts import Skipped
from drifting_jax.data.file_list import has_suffix, is_folder, is_hidden
from drifting_jax.errors import UserError

# {spelling: kind of split}. A split is taken from the first kind in `_KINDS` that is there.
_SPELLINGS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
# These count only where both a training split and another one are there: test1, train2017, val_set.
_LONGER = re.compile(
    rf"({'|'.join(_SPELLINGS)}|dev|eval)[ _.-]?(set|data|images?|imgs?|split|\d{{4}}|1|)"
)
_KINDS = {"train": ("train",), "test": ("val", "test")}
_LOOKED_FOR = {"train": "train", "test": "val, validation, test"}
_DOWNLOADS = ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "imagenet")  # where downloads put the splits
_MOST_INNER = 4  # folders in folders
_WRAPPERS = ("data", "dataset", "images", "imgs")
_MOST_ENTRIES = 20_000  # of a folder that are looked at to find one image, or one subfolder


@dataclasses.dataclass(frozen=True)
class SplitFolder:
    """The folder of a split, and what lies beside it and is not read."""

    path: Path
    beside: tuple[Skipped, ...] = ()


def find_split(
    root: Path, split: str, *, suffixes: Collection[str], is_prepared: Callable[[Path], bool]
) -> SplitFolder:
    """Finds the folder whose subfolders are the classes of a split.

    Args:
      root: the folder that the user named.
      split: "train" or "test".
      suffixes: endings of image files, in lower case.
      is_prepared: whether a folder holds a split that `prepare` wrote.

    Raises:
      UserError: there is no such split, or the folder can be read in two ways.
    """
    level = _Level(root, suffixes, is_prepared)
    is_split = split == "train" and root.absolute().name.lower() in _SPELLINGS
    if is_split and next(level.others(), None) is not None:
        return SplitFolder(root)  # its folders are classes
    level = _download(level) or _inner(level) or level
    if level.splits:
        return _chosen(level, split)
    _require_no_inner_splits(level)
    if split != "train":
        raise UserError(f"{root} has no {split} split: looked for {_LOOKED_FOR[split]} in it")
    return SplitFolder(level.path)


class _Level:
    """The subfolders of a folder, told apart.

    Attributes:
      path: the folder.
      folders: its subfolders, sorted.
      files: names of image files in it; of very many, the first ones.
      splits: {kind: names of the folders that are called so}.
      others: names of all other folders that hold images; found when they are asked for.
    """

    def __init__(self, path: Path, suffixes: Collection[str], is_prepared: Callable[[Path], bool]):
        self.path, self.suffixes, self.is_prepared = path, suffixes, is_prepared
        self.folders, files = _entries(path)
        self.files = [name for name in files if has_suffix(name, suffixes)]
        self.splits = _splits_among(self.folders)
        beside = next(self.others(), None)
        if self.splits and beside is not None:
            # Empty folders beside class folders are no splits.
            full = [name for name in self.split_names() if self._is_full(name)]
            self.splits = _splits_among(full)

    def others(self) -> Iterator[str]:
        """Names of the folders with images that are not called like a split."""
        known = self.split_names()
        return (name for name in self.folders if name not in known and self._is_full(name))

    def full_folders(self, count: int) -> list[str]:
        """The first folders with images, whatever they are called."""
        return list(itertools.islice(filter(self._is_full, self.folders), count))

    def count(self, name: str) -> str:
        """Words for the number of images in a folder."""
        if self.is_prepared(self.path / name):
            return "prepared"
        count, are_all = _count_images(self.path / name, self.suffixes, most=_MOST_ENTRIES)
        return f"{count} image{'s' * (count != 1)}{'' if are_all else ' or more'}"

    def below(self, name: str) -> _Level:
        """The level of a subfolder."""
        return _Level(self.path / name, self.suffixes, self.is_prepared)

    def split_names(self) -> list[str]:
        """Names of the folders that are called like a split."""
        return [name for names in self.splits.values() for name in names]

    def _is_full(self, name: str) -> bool:
        path = self.path / name
        return self.is_prepared(path) or _holds_images(path, self.suffixes)


def _splits_among(folders: list[str]) -> dict[str, list[str]]:
    """{kind of split: folders that are called so}."""
    plain: dict[str, list[str]] = {}
    longer: dict[str, list[str]] = {}
    for name in folders:
        if kind := _SPELLINGS.get(name.lower()):
            plain.setdefault(kind, []).append(name)
        if match := _LONGER.fullmatch(name.lower()):
            longer.setdefault(_SPELLINGS.get(match[1], "val"), []).append(name)
    return longer if "train" in longer and len(longer) > 1 else plain


def _download(level: _Level) -> _Level | None:
    """The folder in which ImageNet's downloads hold the splits."""
    for inner in _DOWNLOADS:
        if not level.splits and (level.path / inner).is_dir() and level.below(inner).splits:
            return level.below(inner)
    return None


def _inner(level: _Level) -> _Level | None:
    """Below folders that hold one folder with images each, the first with splits or classes."""
    for _ in range(_MOST_INNER):
        names = level.full_folders(2)
        if level.splits or level.files or len(names) != 1:
            return None
        level = level.below(names[0])
        if level.splits or (len(level.full_folders(2)) == 2 and not level.files):
            return level
    return None


def _chosen(level: _Level, split: str) -> SplitFolder:
    """The folder of a split among those of a level."""
    others = list(level.others())
    if others and not _are_certain(level):
        _raise_ambiguous(level, others)
    kinds = [kind for kind in _KINDS[split] if kind in level.splits]
    if not kinds:
        found = ", ".join(level.split_names())
        looked_for = _LOOKED_FOR[split]
        raise UserError(
            f"{level.path} has no {split} split: looked for {looked_for} in it, found {found}"
        )
    names = level.splits[kinds[0]]
    if len(names) > 1:
        raise UserError(
            f"{level.path} holds {' and '.join(names)}, which may all be the {kinds[0]} split: "
            f"give the path of one of them, such as {level.path / names[0]}"
        )
    beside = {
        "another split": [
            f"{name} ({level.count(name)})" for name in level.split_names() if name != names[0]
        ],
        "folder beside the splits": others,
        "image file beside the splits": level.files,
    }
    return SplitFolder(
        _unwrapped(level.below(names[0])).path,
        tuple(Skipped.of(reason, found) for reason, found in beside.items() if found),
    )


def _unwrapped(level: _Level) -> _Level:
    """`level`, or the folder in it: train/train/<class>, train/images/<class>."""
    names = level.full_folders(2)
    if len(names) != 1 or names[0].lower() not in (level.path.name.lower(), *_WRAPPERS):
        return level
    inner = level.below(names[0])
    holds_classes = len(inner.full_folders(2)) == 2 and not inner.files and not level.files
    return inner if holds_classes else level


def _are_certain(level: _Level) -> bool:
    """Whether folders that are called like splits are splits, though others lie beside them.

    They are if the training split and another one hold class folders of the same names, or if
    `prepare` wrote them.
    """
    if any(level.is_prepared(level.path / name) for name in level.split_names()):
        return True
    classes = {
        kind: {folder for name in names for folder in level.below(name).folders}
        for kind, names in level.splits.items()
    }
    train = classes.pop("train", set())
    return any(2 * len(train & other) > len(other) for other in classes.values())


def _require_no_inner_splits(level: _Level) -> None:
    """Raises UserError if class folders hold splits themselves: cat/train, cat/test."""
    for name in level.full_folders(3):
        inner = level.below(name)
        if "train" in inner.splits and len(inner.splits) > 1:
            parts = " and ".join(f"{name}/{part}" for part in inner.split_names())
            raise UserError(
                f"{level.path} can be read in two ways, since it holds {parts}: for the splits of "
                f"{name} alone give the path {inner.path}; for a class {name} of all its images "
                f"{_link_advice(level.path)}"
            )


def _raise_ambiguous(level: _Level, others: list[str]) -> None:
    splits = level.split_names()
    shown = ", ".join(others[:3]) + ", …" * (len(others) > 3)
    first = level.splits.get("train", splits)[0]
    raise UserError(
        f"{level.path} can be read in two ways, since it holds {', '.join(splits)} beside {shown}: "
        f"for the split {first} alone give the path {level.path / first}; for classes of all these "
        f"names {_link_advice(level.path)}"
    )


def _link_advice(path: Path) -> str:
    return (
        "give a new folder that holds this one under the name train: "
        f"mkdir NEW && ln -s {shlex.quote(str(path.absolute()))} NEW/train"
    )


def _entries(path: Path) -> tuple[list[str], list[str]]:
    """Subfolders, sorted, and files of a folder, without the hidden ones.

    Of a folder that begins with very many files, these are enough: it is a flat one.
    """
    folders: list[str] = []
    files: list[str] = []
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if not is_hidden(entry.name):
                    (folders if is_folder(entry) else files).append(entry.name)
                if len(files) == _MOST_ENTRIES and not folders:
                    break
    except OSError as error:
        raise UserError(f"cannot list {path}: {error.strerror or error}") from None
    return sorted(folders), files


def _holds_images(path: Path, suffixes: Collection[str]) -> bool:
    """Whether an image file is found in a folder or below it, among the first entries."""
    return _count_images(path, suffixes, most=1)[0] > 0


def _count_images(path: Path, suffixes: Collection[str], *, most: int) -> tuple[int, bool]:
    """How many image files are in a folder and below it, and whether these are all.

    It stops at `most` of them, and after `_MOST_ENTRIES` entries.
    """
    count, left, pending = 0, _MOST_ENTRIES, deque([path])
    while pending:
        try:
            with os.scandir(pending.popleft()) as entries:
                for entry in entries:
                    if left == 0 or count == most:
                        return count, False
                    left -= 1
                    if is_hidden(entry.name):
                        continue
                    if is_folder(entry):
                        pending.append(Path(entry.path))
                    elif has_suffix(entry.name, suffixes):
                        count += 1
        except OSError:
            continue
    return count, True
