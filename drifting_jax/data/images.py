"""Sources of encoded images and of latents, which are read, decoded and cropped on demand.

`draw` gives a record as training sees it, random crops and flips included; `[index]` gives it as
evaluation does, without randomness.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from drifting_jax.data import transforms
from drifting_jax.data.facts import SourceFacts
from drifting_jax.data.records import Records
from drifting_jax.data.shards import ShardRecords
from drifting_jax.data.transforms import Augmentation, UnreadableImage
from drifting_jax.errors import UserError


class RecordSource:
    """What sources of encoded images and of latents share. `sources.Source` has the members."""

    def __init__(
        self, records: Records, image_shape: tuple[int, int, int], *, crop: str | None = None
    ):
        self.records, self.image_shape = records, image_shape
        self.class_names = list(records.class_names)
        self.num_classes = len(self.class_names)
        self.fingerprint = records.fingerprint
        self.labels_are_cheap = records.labels_are_cheap
        self.facts = SourceFacts(records.format, records.where, records.skipped, crop)

    @property
    def labels(self) -> np.ndarray:
        return self.records.labels

    def __len__(self) -> int:
        return len(self.records)

    def name(self, index: int) -> str:
        """What a record is called in messages."""
        return f"{self.records.name(index)} of {self.records.where}"


class ImageSource(RecordSource):
    """Square crops [size, size, 3] uint8 of encoded images.

    Args:
      records: see `records.open_records`.
      size: side of the crops in pixels.
      decoder: one of `transforms.DECODERS`, for training; evaluation uses Pillow.
    """

    image_dtype = np.dtype(np.uint8)

    def __init__(self, records: Records, size: int, *, decoder: str = "pillow"):
        super().__init__(records, (size, size, 3))
        self._decoder = decoder

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The reference's centre crop. Raises UnreadableImage."""
        data, label = self.records.read(index)
        image = transforms.load(data, self.image_shape[0])
        return {"image": image, "label": np.int32(label)}

    def draw(
        self, index: int, rng: np.random.Generator, augmentation: Augmentation
    ) -> dict[str, Any]:
        """A crop for training. Raises UnreadableImage."""
        data, label = self.records.read(index)
        image = transforms.load(
            data, self.image_shape[0], augmentation=augmentation, rng=rng, decoder=self._decoder
        )
        return {"image": image, "label": np.int32(label)}


class LatentSource(RecordSource):
    """Latents of the VAE, drawn from the mean and deviation that `prepare latents` stored.

    A record holds several views of an image, [views, 2, h, w, c] float16, mean and standard
    deviation: the centre crop and its mirror image, or random crops.

    Args:
      records: of format "drifting_jax.latents".
      size: side of the encoded images in pixels.

    Raises:
      UserError: the latents are of images of another size.
    """

    image_dtype = np.dtype(np.float16)

    def __init__(self, records: ShardRecords, size: int):
        info = records.info
        if info["image_size"] != size:
            raise UserError(
                f"{records.where} holds latents of images of side {info['image_size']}; "
                f"config.data.image_size is {size}"
            )
        super().__init__(records, tuple(info["latent_shape"]), crop=info["crop"])
        self._views, self._scale = info["views"], info["scale"]

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The mean of the first view, scaled, float16. Raises UnreadableImage."""
        moments, label = self.moments(index)
        mean = moments[0, 0].astype(np.float32) * self._scale
        return {"image": mean.astype(np.float16), "label": label}

    def draw(
        self, index: int, rng: np.random.Generator, augmentation: Augmentation
    ) -> dict[str, Any]:
        """A latent of a random view, scaled, float16. Raises UnreadableImage.

        The mirrored view of a centre crop is drawn only if the augmentation flips.
        """
        moments, label = self.moments(index)
        view = int(rng.integers(len(moments)))
        if self.facts.crop == "center" and not augmentation.flip:
            view = 0
        mean, deviation = moments[view].astype(np.float32)
        latent = mean + deviation * rng.standard_normal(mean.shape, np.float32)
        return {"image": (latent * self._scale).astype(np.float16), "label": label}

    def moments(self, index: int) -> tuple[np.ndarray, np.int32]:
        """What a record stores: [views, 2, h, w, c] float16, unscaled, and the label.

        Raises:
          UnreadableImage: the record is damaged.
        """
        data, label = self.records.read(index)
        shape = (self._views, 2, *self.image_shape)
        moments = np.frombuffer(data, "<f2")
        if moments.size != np.prod(shape):
            raise UnreadableImage(f"{len(data)} bytes; expected {2 * int(np.prod(shape))}")
        return moments.reshape(shape), np.int32(label)
