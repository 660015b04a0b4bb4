"""Encoded images or latents on a disk, in whichever of the known formats they lie."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np

from drifting_jax.data.folder import open_folder
from drifting_jax.data.shards import ShardRecords
from drifting_jax.data.tfds import TfdsRecords, tfds_folder
from drifting_jax.errors import UserError

_SPLITS = {"train": ("train", "training"), "test": ("val", "validation", "test")}
_INNER = ("", "ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "imagenet")  # where downloads put the splits


class Records(Protocol):
    """Encoded images, or latents, any one at once.

    `read(i)` is a record's bytes and its label; it raises UnreadableImage where there are none.
    """

    format: str
    where: Path
    class_names: list[str]
    fingerprint: str

    @property
    def labels(self) -> np.ndarray: ...

    def __len__(self) -> int: ...

    def read(self, index: int) -> tuple[bytes, int]: ...

    def name(self, index: int) -> str: ...


def open_records(path: Path, split: str) -> Records:
    """The records of a split, in whichever of the known formats they lie in `path`.

    Args:
      path: holds `train/` and perhaps `val/` with class folders (or ImageNet's own
        `ILSVRC/Data/CLS-LOC/` with them), or class folders or images themselves, which are a
        training split; a data set of tensorflow-datasets in array_record; or what
        `drifting_jax.prepare` wrote.
      split: "train" or "test", for which `val` stands.

    Raises:
      UserError: there is none of these, saying what was looked for and what was found.
    """
    path = path.expanduser()
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
