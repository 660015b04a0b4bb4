"""Encoded images or latents on a disk, in any of the known formats."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np

from drifting_jax.data.facts import Skipped, SourceFacts, describe
from drifting_jax.data.folder import FolderRecords, open_folder
from drifting_jax.data.image_formats import readable_suffixes
from drifting_jax.data.layout import find_split
from drifting_jax.data.shards import ShardRecords, is_prepared
from drifting_jax.data.tfds import TfdsRecords, tfds_folder
from drifting_jax.errors import UserError
from drifting_jax.files import expanded

_TFDS_SPLITS = {"train": ("train", "training"), "test": ("val", "validation", "test")}
# How earlier versions read folders, for the runs that began so.
_EARLIER_FOLDERS = ("", "ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "imagenet")
_EARLIER_SUFFIXES = (
    ".jpeg", ".jpg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm",
)  # fmt: skip


class Records(Protocol):
    """Encoded images, or latents, with random access.

    Attributes:
      format: "folder", "tfds", "drifting_jax.images" or "drifting_jax.latents".
      where: the folder.
      class_names: in the order of the labels.
      fingerprint: digits that tell this list of records from others.
      labels_are_cheap: whether `labels` needs no pass over all records.
      skipped: what the folder holds besides usable records.
      labels: [n] int32.
    """

    @property
    def format(self) -> str: ...

    @property
    def where(self) -> Path: ...

    @property
    def class_names(self) -> list[str]: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def labels_are_cheap(self) -> bool: ...

    @property
    def skipped(self) -> tuple[Skipped, ...]: ...

    @property
    def labels(self) -> np.ndarray: ...

    def __len__(self) -> int: ...

    def read(self, index: int) -> tuple[bytes, int]:
        """The bytes of a record and its label. Raises UnreadableImage."""
        ...

    def name(self, index: int) -> str:
        """What a record is called in messages, within `where`."""
        ...


def open_records(path: Path, split: str) -> Records:
    """The records of a split of the data set in a folder.

    Args:
      path: one of these:
        * a folder with `train/` and perhaps `val/`, which hold class folders, also as downloads
          have them (`ILSVRC/Data/CLS-LOC/`, `images/train/`): see `layout`;
        * class folders or images themselves, which are a training split;
        * a data set of tensorflow-datasets in array_record;
        * the output of `drifting_jax.prepare`.
      split: "train", or "test" for `val`, `validation` or `test`.

    Raises:
      UserError: the folder holds none of these, or can be read in two ways. The message says what
        was looked for and found.
    """
    path = Path(expanded(str(path)))
    if not path.is_dir():
        raise UserError(f"no folder of images: {path} does not exist or is a file")
    if is_prepared(path):
        return ShardRecords(path)
    prepared = tfds_folder(path)
    if prepared is not None:
        return TfdsRecords(prepared, _TFDS_SPLITS[split])
    found = find_split(path, split, suffixes=readable_suffixes(), is_prepared=is_prepared)
    if is_prepared(found.path):
        return ShardRecords(found.path)
    return open_folder(found.path, beside=found.beside)


def open_earlier_records(path: Path) -> FolderRecords:
    """The training images of a folder as earlier versions found them.

    They knew fewer endings and spellings of splits, took a folder called train for the split
    whatever lay beside it, and did not look for class folders in a single folder.

    Raises:
      UserError: there are no such images.
    """
    path = path.expanduser()
    names = [Path(inner, name) for inner in _EARLIER_FOLDERS for name in ("train", "training")]
    folder = next((path / name for name in names if (path / name).is_dir()), path)
    return open_folder(folder, suffixes=_EARLIER_SUFFIXES)


def describe_records(records: Records, count: int | None = None) -> list[str]:
    """Lines for a person: how many images and classes there are, where, and what was skipped.

    Args:
      records: what was found.
      count: how many of them are used; None for all.
    """
    return describe(
        SourceFacts(records.format, records.where, records.skipped),
        count=len(records) if count is None else count,
        class_names=records.class_names,
    )
