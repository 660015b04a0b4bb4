"""Encoded images or latents on a disk, in any of the known formats."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np

from drifting_jax.data.facts import Skipped
from drifting_jax.data.folder import open_folder
from drifting_jax.data.shards import ShardRecords
from drifting_jax.data.tfds import TfdsRecords, tfds_folder
from drifting_jax.errors import UserError
from drifting_jax.files import expanded

_SPLITS = {"train": ("train", "training"), "test": ("val", "validation", "test")}
_INNER = ("", "ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "imagenet")  # where downloads put the splits


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
        * a folder with `train/` and perhaps `val/`, which hold class folders, also as ImageNet's
          downloads have them (`ILSVRC/Data/CLS-LOC/`);
        * class folders or images themselves, which are a training split;
        * a data set of tensorflow-datasets in array_record;
        * the output of `drifting_jax.prepare`.
      split: "train", or "test" for `val`, `validation` or `test`.

    Raises:
      UserError: the folder holds none of these. The message says what was looked for and found.
    """
    path = Path(expanded(str(path)))
    if not path.is_dir():
        raise UserError(f"no folder of images: {path} does not exist or is a file")
    folder = _split_folder(path, split)
    for candidate in (folder, path):
        if candidate is not None and (candidate / "info.json").is_file():
            return ShardRecords(candidate)
    prepared = tfds_folder(path)
    if prepared is not None:
        return TfdsRecords(prepared, _SPLITS[split])
    if folder is None:
        _require_train(path, split)
        folder = path
    return open_folder(folder)


def _split_folder(path: Path, split: str) -> Path | None:
    for inner in _INNER:
        for name in _SPLITS[split]:
            if (path / inner / name).is_dir():
                return path / inner / name
    return None


def _require_train(path: Path, split: str) -> None:
    if split != "train":
        raise UserError(
            f"{path} has no {split} split: looked for {', '.join(_SPLITS[split])} in it"
        )
    if other := _split_folder(path, "test"):
        raise UserError(f"{path} has no train split: looked for train in it, found {other.name}")
