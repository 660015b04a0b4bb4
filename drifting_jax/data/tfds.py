"""Data sets that tensorflow-datasets prepared in array_record, read without TensorFlow."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from drifting_jax.data.facts import Skipped, SourceFacts
from drifting_jax.data.in_memory import DecodedSource
from drifting_jax.data.transforms import UnreadableImage
from drifting_jax.digests import SHORT, digest_bytes
from drifting_jax.errors import UserError

_BUILD = "tfds build {name} --file_format=array_record --data_dir="


class NotPreparedError(UserError):
    """tensorflow-datasets knows the data set, and has not prepared it."""


class TfdsSource(DecodedSource):
    """One split of an image-classification data set whose images have one size.

    The data set is read in the array_record format, which needs no TensorFlow.

    Args:
      dataset: its name in tensorflow-datasets, such as "mnist".
      split: of the data set.
      data_dir: the folder that holds `<dataset>/<version>`; None for the library's own default,
        ~/tensorflow_datasets.

    Raises:
      NotPreparedError: the data set is not prepared.
      UserError: the data set is unknown, prepared in a format without random access,
        has no such split, or has images of several sizes. On reading: a label lies outside
        0..num_classes-1 (some test splits hold -1).
    """

    def __init__(self, dataset: str, split: str = "train", data_dir: str | None = None):
        builder = _prepared_builder(dataset, data_dir)
        _require_split(builder, (split,))
        image, label = builder.info.features["image"], builder.info.features["label"]
        if None in image.shape:
            raise UserError(f"{dataset} has images of several sizes {image.shape}; expected one")
        self.facts = SourceFacts("tfds", where=Path(str(builder.data_dir)))
        self._origin = f"{dataset} split {split!r}"
        self.image_shape = tuple(image.shape)
        self.class_names = list(label.names)
        self.num_classes = label.num_classes
        # The same records twice: with decoded images, and with images as bytes to read labels.
        self._records = builder.as_data_source(split=split)
        self._undecoded = _undecoded(builder, split)
        self._labels: np.ndarray | None = None

    @property
    def labels(self) -> np.ndarray:
        """[n] int32. The first call reads every record, about 20 microseconds each."""
        if self._labels is None:
            self._labels = _read_labels(self._undecoded, self._label)
        return self._labels

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self._records[index]
        return {"image": record["image"], "label": self._label(record)}

    def _label(self, record: dict[str, Any]) -> np.int32:
        return _checked_label(record, self.num_classes, self._origin)


class TfdsRecords:
    """One split of a prepared data set as encoded records, such as ImageNet's.

    Attributes:
      where: the folder of the prepared version.
      class_names: in the order of the labels.
      fingerprint: 16 digits of the name, the version and the sizes of all files.
    """

    format = "tfds"
    labels_are_cheap = False  # every record is read for them
    skipped: tuple[Skipped, ...] = ()

    def __init__(self, folder: Path, splits: Sequence[str]):
        import tensorflow_datasets as tfds

        builder = tfds.builder_from_directory(str(folder))
        _require_array_record(builder, builder.name)
        self.where, self.split = folder, _require_split(builder, splits)
        features = builder.info.features
        for field in ("image", "label"):
            if field not in features:
                raise UserError(f"{folder} has no field {field!r}; its fields: {list(features)}")
        self.class_names = list(features["label"].names)
        self._records = _undecoded(builder, self.split)
        split = builder.info.splits[self.split]
        identity = f"{builder.info.full_name} {self.split} {split.shard_lengths}"
        self.fingerprint = digest_bytes(identity.encode(), digits=SHORT)
        self._labels: np.ndarray | None = None

    @property
    def labels(self) -> np.ndarray:
        """[n] int32. The first call reads every record."""
        if self._labels is None:
            self._labels = _read_labels(self._records, self._label)
        return self._labels

    def __len__(self) -> int:
        return len(self._records)

    def read(self, index: int) -> tuple[bytes, int]:
        """An encoded image and its label.

        Raises:
          UnreadableImage: the file is damaged at this record.
        """
        try:
            record = self._records[index]
        except RuntimeError as error:
            raise UnreadableImage(str(error)) from None
        return bytes(record["image"]), int(self._label(record))

    def name(self, index: int) -> str:
        """The record's place in the data set."""
        return f"{self.split}[{index}]"

    def _label(self, record: dict[str, Any]) -> np.int32:
        return _checked_label(record, len(self.class_names), f"{self.where} split {self.split!r}")


def tfds_folder(path: Path) -> Path | None:
    """`path` if it is a prepared version, else the newest one in it or in `imagenet2012` there."""
    if _is_prepared_version(path):
        return path
    for inner in (path, path / "imagenet2012"):
        found = [p.parent for p in inner.glob("*/dataset_info.json")]
        if versions := [folder for folder in found if _is_prepared_version(folder)]:
            return max(versions, key=lambda p: [int(x) for x in p.name.split(".") if x.isdecimal()])
    return None


def _is_prepared_version(folder: Path) -> bool:
    """Whether `dataset_info.json` is of tensorflow-datasets; other libraries write one, too."""
    try:
        info = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8"))
        return "fileFormat" in info or any("shardLengths" in split for split in info["splits"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _undecoded(builder: Any, split: str) -> Any:
    """A split whose images stay encoded: the bytes of their files."""
    import tensorflow_datasets as tfds

    return builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})


def _read_labels(records: Any, label: Callable[[Any], np.int32]) -> np.ndarray:
    return np.array([label(records[i]) for i in range(len(records))], np.int32)


def _checked_label(record: dict[str, Any], num_classes: int, what: str) -> np.int32:
    label = int(record["label"])
    if not 0 <= label < num_classes:
        raise UserError(
            f"{what} holds the label {label}; expected 0 to {num_classes - 1}: choose a split "
            "whose images are labelled"
        )
    return np.int32(label)


def _require_split(builder: Any, splits: Sequence[str]) -> str:
    """The first of these splits that the data set has. Raises UserError if it has none."""
    for split in splits:
        if split in builder.info.splits:
            return split
    found = ", ".join(builder.info.splits)
    raise UserError(f"{builder.name} has no split {splits[0]!r}; it has {found}")


def _require_array_record(builder: Any, name: str) -> None:
    import tensorflow_datasets as tfds

    if builder.info.file_format is not tfds.core.FileFormat.ARRAY_RECORD:
        raise UserError(
            f"{name} in {builder.data_dir} is stored as {builder.info.file_format.value}, without "
            f"random access: run `{_BUILD.format(name=name)}FOLDER` with another FOLDER and give "
            "it as the path"
        )


def _prepared_builder(name: str, data_dir: str | None) -> Any:
    """The tfds builder of a data set on the disk that can be read in any order."""
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError:
        raise UserError(f"tensorflow-datasets knows no data set named {name!r}") from None
    if not builder.is_prepared():
        folder = data_dir or "~/tensorflow_datasets"
        raise NotPreparedError(
            f"{name} is not prepared in {builder.data_dir}: run `{_BUILD.format(name=name)}"
            f"{folder}` once (only this preparation needs tensorflow installed)"
        )
    _require_array_record(builder, name)
    return builder
