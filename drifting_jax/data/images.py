"""Sources of images and latents too many to be held: read, decoded and cropped when asked for.

Both hand out records {"image", "label"}; `draw` as training sees them, with the randomness of the
key that it is given, `[i]` as evaluation does, without any.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from drifting_jax.data import transforms
from drifting_jax.data.records import Records
from drifting_jax.data.transforms import Augmentation, UnreadableImage
from drifting_jax.errors import UserError


class RecordSource:
    """What sources of encoded images and of latents share.

    Attributes:
      labels_at_hand: whether labels are known without reading every record.
    """

    def __init__(self, records: Records, image_shape: tuple[int, int, int]):
        self.records, self.image_shape = records, image_shape
        self.class_names = list(records.class_names)
        self.num_classes = len(self.class_names)
        self.labels_at_hand = records.format != "tfds"

    @property
    def labels(self) -> np.ndarray:
        return self.records.labels

    def __len__(self) -> int:
        return len(self.records)

    def name(self, index: int) -> str:
        """Where a record lies, for messages."""
        return f"{self.records.name(index)} of {self.records.where}"


class ImageSource(RecordSource):
    """Square crops of encoded images.

    Args:
      records: see `imagenet.open_records`.
      size: side of the crops.
      decoder: of training; evaluation's is Pillow.
    """

    image_dtype = np.uint8

    def __init__(self, records: Records, size: int, *, decoder: str = "pillow"):
        super().__init__(records, (size, size, 3))
        self._decoder = decoder

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The reference's centre crop. Raises UnreadableImage."""
        return self._load(index)

    def draw(
        self, index: int, rng: np.random.Generator, augmentation: Augmentation
    ) -> dict[str, Any]:
        """A crop for training. Raises UnreadableImage."""
        return self._load(index, augmentation=augmentation, rng=rng, decoder=self._decoder)

    def _load(self, index: int, **how: Any) -> dict[str, Any]:
        data, label = self.records.read(index)
        image = transforms.load(data, self.image_shape[0], **how)
        return {"image": image, "label": np.int32(label)}


class LatentSource(RecordSource):
    """Latents of the VAE, drawn from the mean and deviation that `prepare latents` stored.

    A record holds several views of an image, [views, 2, h, w, c] float16, mean and standard
    deviation: the centre crop and its mirror image, or random crops.

    Args:
      records: of format "drifting_jax.latents".
      size: side of the images that were encoded, in pixels.

    Raises:
      UserError: the latents are of images of another size.
    """

    image_dtype = np.float16

    def __init__(self, records: Records, size: int):
        self.info = records.info
        if self.info["image_size"] != size:
            raise UserError(
                f"{records.where} holds latents of images of side {self.info['image_size']}; "
                f"config.data.image_size is {size}"
            )
        super().__init__(records, tuple(self.info["latent_shape"]))

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The mean of the first view, scaled, float16. Raises UnreadableImage."""
        moments, label = self._moments(index)
        mean = moments[0, 0].astype(np.float32) * self.info["scale"]
        return {"image": mean.astype(np.float16), "label": label}

    def draw(
        self, index: int, rng: np.random.Generator, augmentation: Augmentation
    ) -> dict[str, Any]:
        """A latent of a random view, scaled, float16. Raises UnreadableImage.

        Of a centre crop the mirrored view is drawn only where the augmentation flips.
        """
        moments, label = self._moments(index)
        view = int(rng.integers(len(moments)))
        if self.info["crop"] == "center" and not augmentation.flip:
            view = 0
        mean, deviation = moments[view].astype(np.float32)
        latent = mean + deviation * rng.standard_normal(mean.shape, np.float32)
        return {"image": (latent * self.info["scale"]).astype(np.float16), "label": label}

    def _moments(self, index: int) -> tuple[np.ndarray, np.int32]:
        data, label = self.records.read(index)
        shape = (self.info["views"], 2, *self.image_shape)
        moments = np.frombuffer(data, "<f2")
        if moments.size != np.prod(shape):
            raise UnreadableImage(f"{len(data)} bytes; expected {2 * int(np.prod(shape))}")
        return moments.reshape(shape), np.int32(label)
