"""Images in [-1, 1] as networks trained on ImageNet take them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

# Of ImageNet's pixels in [0, 1].
_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
_STD = np.array([0.229, 0.224, 0.225], np.float32)


def imagenet_input(images: jax.Array, image_size: int | None, resize: str) -> jax.Array:
    """Resizes images and normalises them with ImageNet's mean and std.

    Args:
      images: [b, h, w, 3] in [-1, 1].
      image_size: side of the square result; None leaves images as they are.
      resize: method of `jax.image.resize` ("bilinear", "bicubic", ...); antialiased where images
        become smaller.

    Returns:
      [b, h', w', 3] float32.

    Raises:
      ValueError: `images` has another shape, or there is no such method.
    """
    check_images(images)
    images = images.astype(jnp.float32)
    if image_size is not None:
        images = jax.image.resize(images, (len(images), image_size, image_size, 3), resize)
    mean, std = _MEAN.reshape(1, 1, 1, 3), _STD.reshape(1, 1, 1, 3)
    return ((images + 1) / 2 - mean) / std


def one_image(side: int, channels: int = 3) -> jax.ShapeDtypeStruct:
    """The shape of a batch of one square image, float32, for `eval_shape`."""
    return jax.ShapeDtypeStruct((1, side, side, channels), jnp.float32)


def check_images(images: jax.Array) -> None:
    """Raises ValueError unless `images` is [b, h, w, 3]."""
    if images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"images must be [b, h, w, 3], found shape {images.shape}")
