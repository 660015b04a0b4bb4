"""Sources of labelled samples with random access, NumPy only, and the table of all of them.

A source knows nothing of order, shuffling and batches: those belong to `pipeline`. The libraries
behind a source are imported when it is opened.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from drifting_jax.data.cifar import cifar_expected, open_cifar
from drifting_jax.data.class_names import NUM_CLASSES
from drifting_jax.data.digits import DigitsSource
from drifting_jax.data.facts import SourceFacts
from drifting_jax.data.file_list import UNLABELLED
from drifting_jax.data.idx import IDX_DATASETS, IDX_EXPECTED, open_idx
from drifting_jax.data.images import ImageSource, LatentSource
from drifting_jax.data.records import Records, open_earlier_records, open_records
from drifting_jax.data.shards import LATENTS, ShardRecords
from drifting_jax.data.tfds import NotPreparedError, TfdsSource
from drifting_jax.data.transforms import Augmentation
from drifting_jax.data.unlabelled import UnlabelledSource
from drifting_jax.errors import UserError

VAE_FACTOR, VAE_CHANNELS = 8, 4  # of the Stable Diffusion VAE


class Source(Protocol):
    """Labelled samples that training reads: images, latents, or the points of a toy.

    A record is {"image": array of `image_shape` and `image_dtype`, "label": int32 scalar}. Sources
    are pickled on their way to worker processes.

    Attributes:
      image_shape: of one sample: [h, w, c], or [2] for points.
      image_dtype: uint8 for images in 0..255, float16 for scaled latents, float32 for points.
      num_classes: labels are 0..num_classes-1.
      class_names: one for each class, in the order of the labels.
      labels: [n] int32.
      labels_are_cheap: whether `labels` takes seconds at most; otherwise it reads every record.
      fingerprint: digits that tell this data from other data; "" for data that is always the same.
      facts: where and how the records are stored.
    """

    @property
    def image_shape(self) -> tuple[int, ...]: ...

    @property
    def image_dtype(self) -> np.dtype: ...

    @property
    def num_classes(self) -> int: ...

    @property
    def class_names(self) -> list[str]: ...

    @property
    def labels(self) -> np.ndarray: ...

    @property
    def labels_are_cheap(self) -> bool: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def facts(self) -> SourceFacts: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]:
        """A record as evaluation sees it, without randomness. Raises UnreadableImage."""
        ...

    def draw(
        self, index: int, rng: np.random.Generator, augmentation: Augmentation
    ) -> dict[str, Any]:
        """A record as training sees it; all randomness comes from `rng`. Raises UnreadableImage."""
        ...

    def name(self, index: int) -> str:
        """What a record is called in messages."""
        ...


@dataclasses.dataclass(frozen=True)
class DataSpec:
    """What networks and steps need to know of a source. Nothing is read for it.

    Attributes:
      image_shape: of one sample.
      num_classes: labels are 0..num_classes-1.
      count: records of the training split; 0 if unknown. Networks do not depend on it.
    """

    image_shape: tuple[int, ...]
    num_classes: int
    count: int = dataclasses.field(default=0, compare=False)


def spec_of(source: Source) -> DataSpec:
    """Returns what networks and steps need to know of a source."""
    return DataSpec(source.image_shape, source.num_classes, len(source))


@dataclasses.dataclass(frozen=True)
class SourceKind:
    """An entry of the table of sources.

    Attributes:
      open: (config.data, "train" or "test") -> the source.
      image_shape: of its samples; None for colour images of side config.data.image_size.
      num_classes: how many classes it has; None if its folder says so.
      count: records of its training split; None if its folder says so.
      is_small: whether a split fits into memory; runs on such data are measured by a classifier
        that is trained on the spot.
    """

    open: Callable[[Any, str], Source]
    image_shape: tuple[int, int, int] | None = None
    num_classes: int | None = None
    count: int | None = None
    is_small: bool = False


def _open_digits(data: Any, split: str) -> Source:
    return DigitsSource(split)


def _open_small(data: Any, split: str) -> Source:
    """MNIST or CIFAR in whatever format its folder holds."""
    name = data.source
    expected = IDX_EXPECTED if name in IDX_DATASETS else cifar_expected(name)
    path = Path(data.path).expanduser() if data.path else None
    if path:
        if not path.exists():
            raise UserError(f"config.data.path={data.path} does not exist; expected {expected}")
        if not any(path.glob(f"{name}/*/dataset_info.json")):
            opened = open_idx if name in IDX_DATASETS else open_cifar
            found = opened(path, name, split)
            if found is not None:
                return found
    try:
        return TfdsSource(name, split, str(path) if path else None)
    except NotPreparedError as error:
        place = "config.data.path is empty"
        if path:
            names = sorted(p.name for p in path.iterdir()) if path.is_dir() else ["a file"]
            listed = ", ".join(names[:8]) + ", …" * (len(names) > 8) or "nothing"
            place = f"no {name} in {data.path}, found {listed}"
        raise UserError(f"{place}; expected a folder with {expected}. Else: {error}") from None


def _open_images(data: Any, split: str) -> Source:
    return _of_records(_open_records(data, split), data)


def _open_imagenet(data: Any, split: str) -> Source:
    records = _open_records(data, split)
    if list(records.class_names) == [UNLABELLED]:
        raise UserError(
            f"{records.where} holds images without class folders; expected ImageNet's, such as "
            "train/n01440764: configs/images.py trains on images without labels"
        )
    return _of_records(records, data)


def _open_records(data: Any, split: str) -> Records:
    if not data.path:
        raise UserError("config.data.path must say where the images are: --config.data.path=FOLDER")
    return open_records(Path(data.path), split)


def _of_records(records: Records, data: Any) -> Source:
    """Images or latents, as the config expects them."""
    if isinstance(records, ShardRecords) and records.format == LATENTS:
        if not data.latent:
            raise UserError(
                f"{records.where} holds latents; a config with data.latent=True trains on them"
            )
        return LatentSource(records, data.image_size)
    if data.latent:
        raise UserError(
            f"{records.where} holds images; config.data.latent needs their latents: run `python -m "
            f"drifting_jax.prepare latents {shlex.quote(f'--source={data.path}')} --vae=… "
            "--out=FOLDER` and give that FOLDER"
        )
    return ImageSource(records, data.image_size, decoder=data.decoder)


# config.data.source takes these names; drifting_jax/config repeats them.
SOURCES = {
    "digits": SourceKind(_open_digits, (8, 8, 1), num_classes=10, count=1347, is_small=True),
    "mnist": SourceKind(_open_small, (28, 28, 1), num_classes=10, count=60000, is_small=True),
    "fashion_mnist": SourceKind(
        _open_small, (28, 28, 1), num_classes=10, count=60000, is_small=True
    ),
    "cifar10": SourceKind(_open_small, (32, 32, 3), num_classes=10, count=50000, is_small=True),
    "cifar100": SourceKind(_open_small, (32, 32, 3), num_classes=100, count=50000, is_small=True),
    "imagenet": SourceKind(_open_imagenet, num_classes=NUM_CLASSES),
    "images": SourceKind(_open_images),
}
SMALL_SOURCES = tuple(name for name, kind in SOURCES.items() if kind.is_small)


def data_spec(data: Any) -> DataSpec:
    """Shape, classes and number of the samples that a config's `data` section names.

    Args:
      data: the section, with fields `source`, `image_size`, `latent`, `path` and perhaps `labels`.
        The folder is opened only if the number of classes is not known without it.

    Raises:
      UserError: latents of images whose side the VAE does not divide, or no such folder.
    """
    kind = _kind(data.source)
    side = data.image_size
    shape = kind.image_shape or (side, side, 3)
    if data.latent:
        if shape[0] % VAE_FACTOR or kind.image_shape is not None:
            raise UserError(
                f"config.data.latent needs colour images of sides {VAE_FACTOR}·n; "
                f"{data.source} has {'x'.join(map(str, shape))}"
            )
        shape = (shape[0] // VAE_FACTOR, shape[1] // VAE_FACTOR, VAE_CHANNELS)
    num_classes, count = kind.num_classes, kind.count
    if num_classes is None:
        records = open_records(Path(data.path), "train")
        num_classes, count = len(records.class_names), len(records)
    return DataSpec(shape, num_classes if _has_labels(data) else 1, count or 0)


def make_source(data: Any, split: str, *, labels: bool | None = None) -> Source:
    """The source that a config's `data` section names.

    Args:
      data: the section, with fields `source` (a name in SOURCES) and `path` (the folder of a data
        set; for MNIST and CIFAR that of their files or of tensorflow-datasets, empty for the
        default of the latter), and for images in folders `image_size`, `latent` and `decoder`.
        Where it has a field `labels` that is false, all images are of one class.
      split: "train" or "test".
      labels: the same in place of the field; None for the field.

    Raises:
      UserError: the source is unknown, or cannot be opened.
    """
    found = _kind(data.source).open(data, split)
    keeps = _has_labels(data) if labels is None else labels
    return found if keeps or found.num_classes == 1 else UnlabelledSource(found)


def _has_labels(data: Any) -> bool:
    """Whether a config's `data` section keeps the labels; sections of toys have no such field."""
    return getattr(data, "labels", True)


def make_earlier_source(data: Any) -> Source | None:
    """The training images of a folder as earlier versions read them; None for data of another kind.

    Raises:
      UserError: they would have read none.
    """
    if data.source not in ("images", "imagenet") or not Path(data.path).expanduser().is_dir():
        return None
    return _of_records(open_earlier_records(Path(data.path)), data)


def as_arrays(source: Source) -> tuple[np.ndarray, np.ndarray]:
    """The whole source in memory: images [n,h,w,c] uint8, labels [n] int32."""
    images = np.stack([source[i]["image"] for i in range(len(source))])
    return images, np.asarray(source.labels)


def _kind(name: str) -> SourceKind:
    if name not in SOURCES:
        raise UserError(f"data.source is one of {', '.join(SOURCES)}; found {name!r}")
    return SOURCES[name]
