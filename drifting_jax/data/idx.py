"""MNIST and Fashion-MNIST in the IDX files that their authors publish, gzipped or not."""

from __future__ import annotations

import dataclasses
import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from drifting_jax.data.facts import SourceFacts
from drifting_jax.data.in_memory import FileSource
from drifting_jax.errors import UserError

_GZIP = b"\x1f\x8b"
_UNSIGNED_BYTES = b"\0\0\x08"  # two zeros and the code of the type; the number of axes follows
_PREFIXES = {"train": "train", "test": "t10k"}
_NAMES = ("{}-images-idx3-ubyte", "{}-labels-idx1-ubyte")


@dataclasses.dataclass(frozen=True)
class IdxDataset:
    """A data set in four IDX files.

    Attributes:
      title: its usual name.
      folders: where in a folder its files may lie, besides that folder itself.
      class_names: in the order of the labels.
      first_labels: {split: its first ten labels}, since both data sets have the same file names.
    """

    title: str
    folders: tuple[str, ...]
    class_names: tuple[str, ...]
    first_labels: dict[str, tuple[int, ...]]


IDX_DATASETS = {
    "mnist": IdxDataset(
        "MNIST",
        ("raw", "MNIST/raw", "MNIST", "mnist"),
        tuple("0123456789"),
        {"train": (5, 0, 4, 1, 9, 2, 1, 3, 1, 4), "test": (7, 2, 1, 0, 4, 1, 4, 9, 5, 9)},
    ),
    "fashion_mnist": IdxDataset(
        "Fashion-MNIST",
        ("raw", "FashionMNIST/raw", "FashionMNIST", "fashion-mnist", "fashion_mnist"),
        (
            "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
            "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
        ),
        {"train": (9, 0, 0, 3, 0, 2, 7, 2, 5, 5), "test": (9, 2, 1, 1, 6, 1, 4, 6, 5, 7)},
    ),
}  # fmt: skip
IDX_EXPECTED = "train-images-idx3-ubyte(.gz) and the three other IDX files"


def open_idx(path: Path, dataset: str, split: str) -> FileSource | None:
    """A split of a data set in IDX files: images [28, 28, 1] uint8, in the order of the files.

    Args:
      path: the folder of the four files, or torchvision's (with `MNIST/raw/` in it).
      dataset: a name in IDX_DATASETS.
      split: "train" or "test".

    Returns:
      The source; None if no such file is there.

    Raises:
      UserError: one of the two files of the split is missing or damaged, they do not belong
        together, or they hold another data set.
    """
    known = IDX_DATASETS[dataset]
    for folder in (path, *(path / inner for inner in known.folders)):
        if any(_find(folder, prefix) != [None, None] for prefix in _PREFIXES.values()):
            break
    else:
        return None
    prefix = _PREFIXES[split]
    files = []
    for name, file in zip(_NAMES, _find(folder, prefix), strict=True):
        if file is None:
            raise UserError(
                f"{folder} holds {known.title} without {name.format(prefix)} or "
                f"{name.format(prefix)}.gz: put that file there"
            )
        files.append(file)
    images, labels = (read_idx(file) for file in files)
    if images.ndim != 3 or images.shape[1:] != (28, 28):
        raise UserError(f"expected images [n, 28, 28] in {files[0]}, found {list(images.shape)}")
    if labels.shape != images.shape[:1]:
        raise UserError(
            f"expected {len(images)} labels in {files[1]}, one for each image of {files[0].name}; "
            f"found {list(labels.shape)}"
        )
    if len(labels) and labels.max() >= len(known.class_names):
        raise UserError(f"expected labels 0 to 9 in {files[1]}, found {labels.max()}")
    for name, other in IDX_DATASETS.items():
        if name != dataset and tuple(labels[:10]) == other.first_labels[split]:
            raise UserError(
                f"{folder} holds {other.title}, not {known.title}: its first labels are "
                f"{other.first_labels[split]}; --config.data.source={name} reads it"
            )
    facts = SourceFacts("idx", where=folder)
    return FileSource(images[..., None], labels, list(known.class_names), facts)


def read_idx(path: Path) -> np.ndarray:
    """The array of an IDX file of unsigned bytes, gzipped or not: [...] uint8.

    Raises:
      UserError: the file is damaged, truncated or none of unsigned bytes.
    """
    data = path.read_bytes()
    if data.startswith(_GZIP):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"{path} is no whole gzip file: {error}") from None
    axes = data[3] if len(data) > 3 else 0
    start = 4 + 4 * axes
    if not data.startswith(_UNSIGNED_BYTES) or len(data) < start:
        raise UserError(
            f"expected an IDX file of unsigned bytes in {path} (first bytes 00 00 08); found "
            f"{data[:16]!r}"
        )
    shape = tuple(int(n) for n in np.frombuffer(data, ">u4", axes, 4))
    if len(data) - start != math.prod(shape):
        raise UserError(
            f"expected {math.prod(shape)} bytes after the header of {path}, whose shape is "
            f"{list(shape)}; found {len(data) - start}: the file is truncated or damaged"
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def _find(folder: Path, prefix: str) -> list[Path | None]:
    """The files of images and of labels of a split; None for one that is not there."""
    found: list[Path | None] = []
    for name in _NAMES:
        plain = name.format(prefix)
        dotted = plain.replace("-idx", ".idx")  # as some downloads spell it
        files = [
            folder / f"{spelled}{ending}" for spelled in (plain, dotted) for ending in ("", ".gz")
        ]
        found.append(next((file for file in files if file.is_file()), None))
    return found
