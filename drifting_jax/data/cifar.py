"""CIFAR-10 and CIFAR-100 as published: the python and the binary version, packed or unpacked.

The pickles of the python version are read without running any code that they name.
"""

from __future__ import annotations

import dataclasses
import io
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from drifting_jax.data.facts import SourceFacts
from drifting_jax.data.in_memory import FileSource
from drifting_jax.errors import UserError
from drifting_jax.unpickle import PickledArray, numpy_array, unpickle

_PIXELS = 3 * 32 * 32  # the red plane of an image, then the green one, then the blue one
_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer",
            "dog", "frog", "horse", "ship", "truck")  # fmt: skip
_CIFAR100 = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus
    butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch
    crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo
    keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain
    mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain
    plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
    skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone
    television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""
_LARGEST = 2**28  # bytes of a member of an archive; the largest published one has 155 MB


@dataclasses.dataclass(frozen=True)
class CifarDataset:
    """A data set that is published in a python and in a binary version.

    Attributes:
      title: its usual name.
      folders: of the python and of the binary version, as their archives name them.
      archives: the names of their archives without `.tar.gz`.
      files: {split: files of the python version}; those of the binary one end in `.bin`.
      label_key: of the labels in the pickles.
      label_bytes: labels of each record in the binary version; the last one is used.
      class_names: in the order of the labels.
    """

    title: str
    folders: tuple[str, str]
    archives: tuple[str, str]
    files: dict[str, tuple[str, ...]]
    label_key: str
    label_bytes: int
    class_names: tuple[str, ...]


CIFAR_DATASETS = {
    "cifar10": CifarDataset(
        "CIFAR-10",
        ("cifar-10-batches-py", "cifar-10-batches-bin"),
        ("cifar-10-python", "cifar-10-binary"),
        {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)},
        "labels",
        1,
        _CIFAR10,
    ),
    "cifar100": CifarDataset(
        "CIFAR-100",
        ("cifar-100-python", "cifar-100-binary"),
        ("cifar-100-python", "cifar-100-binary"),
        {"train": ("train",), "test": ("test",)},
        "fine_labels",
        2,
        tuple(_CIFAR100.split()),
    ),
}


def cifar_expected(dataset: str) -> str:
    """The names that `open_cifar` looks for."""
    known = CIFAR_DATASETS[dataset]
    names = [f"{folder}/" for folder in known.folders]
    return ", ".join([*names, *(f"{name}.tar.gz" for name in known.archives)])


def open_cifar(path: Path, dataset: str, split: str) -> FileSource | None:
    """A split of CIFAR: images [32, 32, 3] uint8.

    They are in the order of the files; the training files of CIFAR-10 follow each other by their
    number. The classes of CIFAR-100 are its 100 fine ones.

    Args:
      path: a folder with one of the published folders or archives, such a folder or archive itself,
        or torchvision's folder, which is the same.
      dataset: a name in CIFAR_DATASETS.
      split: "train" or "test".

    Returns:
      The source; None if none of these is there.

    Raises:
      UserError: files are missing, truncated, or hold something else.
    """
    known = CIFAR_DATASETS[dataset]
    for where, binary in _places(path, known):
        names = [name + ".bin" * binary for name in known.files[split]]
        contents = _read_folder(where, names) if where.is_dir() else _read_archive(where, names)
        parse = _parse_binary if binary else _parse_pickle
        parts = [parse(contents[name], where, name, known) for name in names]
        if len({len(labels) for _, labels in parts}) > 1:
            counts = ", ".join(str(len(labels)) for _, labels in parts)
            raise UserError(
                f"expected equally many images in {', '.join(names)} of {where}; found {counts}"
            )
        pixels = np.concatenate([images for images, _ in parts]).reshape(-1, 3, 32, 32)
        labels = np.concatenate([labels for _, labels in parts])
        images = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))
        facts = SourceFacts("cifar binary" if binary else "cifar python", where=where)
        return FileSource(images, labels, list(known.class_names), facts)
    return None


def _places(path: Path, known: CifarDataset) -> list[tuple[Path, bool]]:
    """The folders and archives that are there, and whether each is of the binary version."""
    if path.is_file():
        return [(path, binary) for binary in (False, True) if known.archives[binary] in path.name]
    found = []
    for binary in (False, True):
        folder, archive = known.folders[binary], known.archives[binary]
        if (path / folder).is_dir():
            found.append((path / folder, binary))
        all_files = [name + ".bin" * binary for names in known.files.values() for name in names]
        if all((path / name).is_file() for name in (all_files[0], all_files[-1])):
            found.append((path, binary))
        packed = [path / f"{archive}{ending}" for ending in (".tar.gz", ".tgz", ".tar")]
        found += [(file, binary) for file in packed if file.is_file()]
    return found


def _read_folder(folder: Path, names: Sequence[str]) -> dict[str, bytes]:
    _require_all(folder, names, [name for name in names if (folder / name).is_file()])
    return {name: (folder / name).read_bytes() for name in names}


def _read_archive(path: Path, names: Sequence[str]) -> dict[str, bytes]:
    """The contents of members of a tar archive, which is read once from its beginning."""
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                name = PurePosixPath(member.name).name
                file = archive.extractfile(member) if name in names and member.isfile() else None
                if file is None:
                    continue
                if member.size > _LARGEST:
                    raise UserError(f"{name} in {path} has {member.size} bytes, too many for CIFAR")
                found[name] = file.read()
                if len(found) == len(names):
                    break
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise UserError(
            f"{path} is truncated or no tar archive ({error}): download it again"
        ) from None
    _require_all(path, names, list(found))
    return found


def _require_all(where: Path, names: Sequence[str], found: Sequence[str]) -> None:
    missing = [name for name in names if name not in found]
    if missing:
        raise UserError(
            f"expected {', '.join(names)} in {where}; {', '.join(missing)} "
            f"{'are' if len(missing) > 1 else 'is'} missing"
        )


def _parse_binary(
    data: bytes, where: Path, name: str, known: CifarDataset
) -> tuple[np.ndarray, np.ndarray]:
    """Pixels [n, 3072] and labels [n] of a file of records: label bytes, then pixels."""
    size = known.label_bytes + _PIXELS
    if not data or len(data) % size:
        raise UserError(
            f"expected a multiple of {size} bytes in {name} of {where}, found {len(data)}: it is "
            f"truncated or no file of {known.title}"
        )
    records = np.frombuffer(data, np.uint8).reshape(-1, size)
    return records[:, known.label_bytes :], _checked(
        records[:, known.label_bytes - 1], where, name, known
    )


def _parse_pickle(
    data: bytes, where: Path, name: str, known: CifarDataset
) -> tuple[np.ndarray, np.ndarray]:
    """Pixels [n, 3072] and labels [n] of a pickled dict, whose strings Python 2 wrote."""
    content, _ = unpickle(io.BytesIO(data), where / name, size=len(data), encoding="bytes")
    record: dict[str, Any] = {}
    for key, value in content.items() if isinstance(content, dict) else ():
        record[key.decode("latin1") if isinstance(key, bytes) else str(key)] = value
    pixels, labels = record.get("data"), record.get(known.label_key)
    if not isinstance(pixels, PickledArray) or not isinstance(labels, list):
        raise UserError(
            f"expected 'data' and {known.label_key!r} in {name} of {where}, found "
            f"{', '.join(map(repr, list(record)[:8])) or type(content).__name__}"
        )
    images = numpy_array(pixels, f"'data' in {name} of {where}")
    if images.dtype != np.uint8 or images.shape != (len(labels), _PIXELS):
        raise UserError(
            f"expected 'data' [{len(labels)}, {_PIXELS}] uint8 in {name} of {where}, one row for "
            f"each label; found {list(images.shape)} {images.dtype}"
        )
    if not all(type(label) is int for label in labels):
        raise UserError(f"expected whole numbers as {known.label_key!r} in {name} of {where}")
    return images, _checked(np.array(labels, np.int64), where, name, known)


def _checked(labels: np.ndarray, where: Path, name: str, known: CifarDataset) -> np.ndarray:
    most = len(known.class_names) - 1
    if len(labels) and not 0 <= labels.min() <= labels.max() <= most:
        raise UserError(
            f"expected labels 0 to {most} in {name} of {where}, found {labels.min()} to "
            f"{labels.max()}"
        )
    return labels
