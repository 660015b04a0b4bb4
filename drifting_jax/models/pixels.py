"""Images in [-1, 1] as networks take them that were trained on ImageNet: resized and normalised."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

# Of ImageNet's pixels in [0, 1].
_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
_STD = np.array([0.229, 0.224, 0.225], np.float32)

PLAIN_BICUBIC = "bicubic_plain"
# With it float32 products are exact float32 on every accelerator.
_HIGHEST = jax.lax.Precision.HIGHEST


def imagenet_input(
    images: jax.Array, image_size: int | None, resize: str, *, normalize: bool = True
) -> jax.Array:
    """Resizes images and normalises them with ImageNet's mean and std.

    Args:
      images: [b, h, w, 3] in [-1, 1].
      image_size: side of the square result; None leaves images as they are.
      resize: "bicubic_plain" (`plain_bicubic`) or a method of `jax.image.resize` ("bilinear",
        "bicubic", ...), which is antialiased where images become smaller. "bicubic" has a = -0.5,
        and is torch's `interpolate(mode="bicubic", antialias=True)`.
      normalize: whether the mean is taken off and the std divided out; if not, the result lies in
        [0, 1].

    Returns:
      [b, h', w', 3], at least float32.

    Raises:
      ValueError: `images` has another shape, or there is no such method.
    """
    check_images(images)
    images = images.astype(jnp.promote_types(images.dtype, jnp.float32))
    if image_size is not None and resize == PLAIN_BICUBIC:
        images = plain_bicubic(images, image_size, image_size)
    elif image_size is not None:
        images = jax.image.resize(images, (len(images), image_size, image_size, 3), resize)
    pixels = (images + 1) / 2
    if not normalize:
        return pixels
    return (pixels - _MEAN.reshape(1, 1, 1, 3)) / _STD.reshape(1, 1, 1, 3)


def plain_bicubic(images: jax.Array, rows: int, columns: int, *, offset: float = 0.0) -> jax.Array:
    """Bicubic resize (a = -0.75) with the border repeated, not antialiased.

    It is torch's `interpolate(mode="bicubic", align_corners=False)`, and differentiable.

    Args:
      images: [b, h, w, c].
      rows, columns: sides of the result.
      offset: added to `rows` and `columns` where distances between positions are computed.

    Returns:
      [b, rows, columns, c].
    """
    _, height, width, _ = images.shape
    vertical = _cubic_weights(height, rows, offset).astype(images.dtype)
    horizontal = _cubic_weights(width, columns, offset).astype(images.dtype)
    images = jnp.einsum("ri,bijd->brjd", vertical, images, precision=_HIGHEST)
    return jnp.einsum("cj,brjd->brcd", horizontal, images, precision=_HIGHEST)


def _cubic_weights(size: int, new_size: int, offset: float) -> np.ndarray:
    """Weights of cubic interpolation along one axis, border repeated: [new_size, size]."""
    a = -0.75
    centres = (np.arange(new_size) + 0.5) * size / (new_size + offset) - 0.5
    weights = np.zeros((new_size, size))
    for tap in range(-1, 3):
        index = np.floor(centres) + tap
        x = np.abs(centres - index)
        near = ((a + 2) * x - (a + 3)) * x**2 + 1
        far = ((x - 5) * x + 8) * x * a - 4 * a
        column = np.clip(index, 0, size - 1).astype(int)
        np.add.at(weights, (np.arange(new_size), column), np.where(x <= 1, near, far))
    return weights


def one_image(side: int, channels: int = 3) -> jax.ShapeDtypeStruct:
    """The shape of a batch of one square image, float32, for `eval_shape`."""
    return jax.ShapeDtypeStruct((1, side, side, channels), jnp.float32)


def check_images(images: jax.Array) -> None:
    """Raises ValueError unless `images` is [b, h, w, 3]."""
    if images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"images must be [b, h, w, 3], found shape {images.shape}")
