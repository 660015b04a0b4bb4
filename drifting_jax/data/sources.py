"""Random-access sources of labelled images: uint8 images and int32 labels, NumPy only.

A source says how many records it holds and hands out any one of them by its index; order, shuffling
and batches belong to `pipeline`. The libraries behind a source are imported when it is built.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from drifting_jax.data.class_names import NUM_CLASSES
from drifting_jax.data.folder import UNLABELLED
from drifting_jax.data.images import ImageSource, LatentSource
from drifting_jax.data.records import open_records
from drifting_jax.data.tfds import TfdsSource
from drifting_jax.errors import UserError

SMALL_SOURCES = ("digits", "mnist", "cifar10")  # held in memory, measured with a classifier
SOURCES = (*SMALL_SOURCES, "imagenet", "images")
VAE_FACTOR, VAE_CHANNELS = 8, 4  # of the Stable Diffusion VAE


class Source(Protocol):
    """What the pipeline, the queue and the evaluation read.

    `source[i]` is {"image": [h,w,c] uint8 (latents: float16), "label": int32 scalar}; `labels` is
    [n] int32, known without decoding an image. A source whose records may be unreadable, or that
    augments them its own way, also has `draw(i, rng, augmentation)` and `name(i)`.
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


@dataclasses.dataclass(frozen=True)
class DataSpec:
    """What networks need to know of a source: nothing is read."""

    image_shape: tuple[int, int, int]
    num_classes: int


def describe(data: Any) -> DataSpec:
    """Shape and classes of the samples that a config's `data` section names.

    Images in folders of one's own are looked up for the number of their classes; nothing else is
    read.

    Raises:
      UserError: latents of images whose side the VAE does not divide, or no such folder.
    """
    shapes = {"digits": (8, 8, 1), "mnist": (28, 28, 1), "cifar10": (32, 32, 3)}
    side = data.image_size
    shape = shapes.get(data.source, (side, side, 3))
    if data.latent:
        if shape[0] % VAE_FACTOR or data.source in SMALL_SOURCES:
            raise UserError(
                f"config.data.latent needs colour images of sides {VAE_FACTOR}·n; "
                f"{data.source} has {'x'.join(map(str, shape))}"
            )
        shape = (shape[0] // VAE_FACTOR, shape[1] // VAE_FACTOR, VAE_CHANNELS)
    if data.source == "images":
        return DataSpec(shape, len(open_records(Path(data.path), "train").class_names))
    return DataSpec(shape, NUM_CLASSES if data.source == "imagenet" else 10)


def make_source(data: Any, split: str) -> Source:
    """The source that a config's `data` section names.

    Args:
      data: the section, with fields `source` (one of SOURCES) and `path` (a data set's folder; of
        the small ones that of tensorflow-datasets, or empty for its default), and for images in
        folders `image_size`, `latent` and `decoder`.
      split: "train" or "test".

    Raises:
      UserError: an unknown source, or what the source itself finds wrong.
    """
    if data.source == "digits":
        return DigitsSource(split)
    if data.source in SMALL_SOURCES:
        return TfdsSource(data.source, split, data.path or None)
    if data.source not in SOURCES:
        raise UserError(f"data.source is one of {', '.join(SOURCES)}; found {data.source!r}")
    if not data.path:
        raise UserError("config.data.path must say where the images are: --config.data.path=FOLDER")
    records = open_records(Path(data.path), split)
    is_latent = records.format == "drifting_jax.latents"
    if data.source == "imagenet" and list(records.class_names) == [UNLABELLED]:
        raise UserError(
            f"{records.where} holds images without class folders; expected ImageNet's, such as "
            "train/n01440764: configs/images.py trains on images without labels"
        )
    if data.latent and not is_latent:
        raise UserError(
            f"{records.where} holds images; config.data.latent needs their latents: run `python -m "
            f"drifting_jax.prepare latents --source={data.path} --vae=… --out=FOLDER` and give "
            "that FOLDER"
        )
    if is_latent and not data.latent:
        raise UserError(
            f"{records.where} holds latents; a config with data.latent=True trains on them"
        )
    if is_latent:
        return LatentSource(records, data.image_size)
    return ImageSource(records, data.image_size, decoder=data.decoder)


def as_arrays(source: Source) -> tuple[np.ndarray, np.ndarray]:
    """The whole source in memory: images [n,h,w,c] uint8, labels [n] int32."""
    images = np.stack([source[i]["image"] for i in range(len(source))])
    return images, np.asarray(source.labels)
