"""Random-access sources of labelled images: uint8 images and int32 labels, NumPy only.

A source says how many records it holds and hands out any one of them by its index; order, shuffling
and batches belong to `pipeline`. The libraries behind a source are imported when it is built.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import numpy as np

from drifting_jax.errors import UserError

IMAGE_SOURCES = ("digits", "mnist", "cifar10")
_VAE_FACTOR, _VAE_CHANNELS = 8, 4  # of the Stable Diffusion VAE


class Source(Protocol):
    """What the pipeline, the queue and the evaluation read.

    `source[i]` is {"image": [h,w,c] uint8, "label": int32 scalar}; `labels` is [n] int32, known
    without decoding an image.
    """

    num_classes: int
    class_names: list[str]
    image_shape: tuple[int, int, int]

    @property
    def labels(self) -> np.ndarray: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


class DigitsSource:
    """The 1797 hand-written digits that come with scikit-learn, 8x8 and one channel.

    A stratified quarter (450 digits) is the test split, the other 1347 the training split; the 17
    grey levels 0..16 are spread over 0..255. Raises UserError for a split of another name.
    """

    num_classes = 10
    image_shape = (8, 8, 1)

    def __init__(self, split: str = "train"):
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        if split not in ("train", "test"):
            raise UserError(f"digits have the splits 'train' and 'test', found {split!r}")
        levels, labels = load_digits(return_X_y=True)
        train, test = train_test_split(
            np.arange(len(labels)), test_size=0.25, random_state=0, stratify=labels
        )
        chosen = train if split == "train" else test
        self.class_names = [str(digit) for digit in range(self.num_classes)]
        self.labels = labels[chosen].astype(np.int32)
        self._images = np.rint(levels[chosen] * 255.0 / 16.0).astype(np.uint8).reshape(-1, 8, 8, 1)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self._images[index], "label": self.labels[index]}


class TfdsSource:
    """One split of an image-classification data set that tensorflow-datasets prepared.

    It is read in the array_record format, which needs no TensorFlow. `data_dir` is the folder that
    holds `<name>/<version>`; None is the library's own default, ~/tensorflow_datasets. Raises
    UserError when the data set is unknown, not prepared, prepared in a format without random
    access, has no such split, or has images of several sizes; and, on reading, for a label outside
    0..num_classes-1 (some test splits carry -1).
    """

    def __init__(self, name: str, split: str = "train", data_dir: str | None = None):
        import tensorflow_datasets as tfds

        builder = _prepared_builder(name, data_dir)
        if split not in builder.info.splits:
            found = ", ".join(builder.info.splits)
            raise UserError(f"{name} has no split {split!r}; it has {found}")
        image, label = builder.info.features["image"], builder.info.features["label"]
        if None in image.shape:
            raise UserError(f"{name} has images of several sizes {image.shape}; one is expected")
        self.name, self.split = name, split
        self.image_shape = tuple(image.shape)
        self.class_names = list(label.names)
        self.num_classes = label.num_classes
        # The same records twice: once with images decoded, once leaving them as bytes for labels.
        undecoded = {"image": tfds.decode.SkipDecoding()}
        self._records = builder.as_data_source(split=split)
        self._undecoded = builder.as_data_source(split=split, decoders=undecoded)
        self._labels: np.ndarray | None = None

    @property
    def labels(self) -> np.ndarray:
        """[n] int32, read once (about 20 microseconds a record) and kept."""
        if self._labels is None:
            records = (self._undecoded[i] for i in range(len(self)))
            self._labels = np.array([self._label(record) for record in records], np.int32)
        return self._labels

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self._records[index]
        return {"image": record["image"], "label": self._label(record)}

    def _label(self, record: dict[str, Any]) -> np.int32:
        label = int(record["label"])
        if not 0 <= label < self.num_classes:
            raise UserError(
                f"{self.name} split {self.split!r} holds the label {label}; expected 0 to "
                f"{self.num_classes - 1}: choose a split whose images are labelled"
            )
        return np.int32(label)


def _prepared_builder(name: str, data_dir: str | None):
    """The tfds builder of a data set that lies on the disk, readable in any order."""
    import tensorflow_datasets as tfds

    build = f"tfds build {name} --file_format=array_record --data_dir="
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError:
        raise UserError(f"tensorflow-datasets knows no data set named {name!r}") from None
    if not builder.is_prepared():
        folder = data_dir or "~/tensorflow_datasets"
        raise UserError(
            f"{name} is not prepared in {builder.data_dir}: run `{build}{folder}` once "
            "(only this preparation needs tensorflow installed)"
        )
    if builder.info.file_format is not tfds.core.FileFormat.ARRAY_RECORD:
        raise UserError(
            f"{name} in {builder.data_dir} is stored as {builder.info.file_format.value}, without "
            f"random access: run `{build}FOLDER` with another FOLDER and give it as the path"
        )
    return builder


@dataclasses.dataclass(frozen=True)
class Described:
    """What networks need to know of a source: nothing is read."""

    image_shape: tuple[int, int, int]
    num_classes: int


def describe(data: Any) -> Described:
    """Shape and classes of the samples that a config's `data` section names.

    Raises:
      UserError: latents of images whose side the VAE does not divide.
    """
    shapes = {"digits": (8, 8, 1), "mnist": (28, 28, 1), "cifar10": (32, 32, 3)}
    side = data.image_size
    shape = shapes.get(data.source, (side, side, 3))
    if data.latent:
        if shape[0] % _VAE_FACTOR or shape[-1] != 3:
            raise UserError(
                f"config.data.latent needs colour images of sides {_VAE_FACTOR}·n; "
                f"{data.source} has {'x'.join(map(str, shape))}"
            )
        shape = (shape[0] // _VAE_FACTOR, shape[1] // _VAE_FACTOR, _VAE_CHANNELS)
    return Described(shape, 1000 if data.source == "imagenet" else 10)


def make_source(data: Any, split: str) -> Source:
    """The source that a config's `data` section names.

    Args:
      data: the section, with fields `source` (one of IMAGE_SOURCES) and `path` (the folder of
        tensorflow-datasets, or None for its default; the digits need none).
      split: "train" or "test".

    Raises:
      UserError: an unknown source, or what the source itself finds wrong.
    """
    if data.source == "imagenet" or getattr(data, "latent", False):
        raise UserError(
            "ImageNet and latents are not read by this version: --dry_run tells what their "
            "training needs"
        )
    if data.source == "digits":
        return DigitsSource(split)
    if data.source in IMAGE_SOURCES:
        return TfdsSource(data.source, split, data.path or None)
    raise UserError(f"data.source is one of {', '.join(IMAGE_SOURCES)}; found {data.source!r}")


def as_arrays(source: Source) -> tuple[np.ndarray, np.ndarray]:
    """The whole source in memory: images [n,h,w,c] uint8, labels [n] int32."""
    images = np.stack([source[i]["image"] for i in range(len(source))])
    return images, np.asarray(source.labels)
