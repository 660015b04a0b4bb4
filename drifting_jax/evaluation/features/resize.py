"""The two resizes that define published evaluations, to the last bit or nearly so.

`jax.image.resize` is neither: it places pixels at other positions than TensorFlow 1 and does not
round between its two passes as Pillow does, which changes the metrics.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

_PRECISION_BITS = 22  # of Pillow's fixed-point weights of 8-bit images


def tf_bilinear(images: jax.Array, size: int = 299) -> jax.Array:
    """Bilinear resize of TensorFlow 1 (`align_corners=False`), which FID's Inception contains.

    Position i of the result is position i * in / out of the image, without a shift by half a pixel,
    antialiasing or rounding; columns first, then rows.

    Args:
      images: [b, h, w, c], uint8 or float32 in 0..255.
      size: side of the square result.

    Returns:
      [b, size, size, c] float32 in 0..255; the same values where h = w = size.

    Raises:
      ValueError: `images` has another rank or dtype.
    """
    _check(images, (jnp.uint8, jnp.float32))
    x = images.astype(jnp.float32)
    for axis in (2, 1):
        x = _interpolate(x, size, axis)
    return x


def _interpolate(x: jax.Array, size: int, axis: int) -> jax.Array:
    length = x.shape[axis]
    if length == size:
        return x
    positions = np.arange(size, dtype=np.float32) * np.float32(length / size)
    low = np.minimum(positions.astype(np.int32), length - 1)
    high = np.minimum(low + 1, length - 1)
    fraction = _along(positions - low.astype(np.float32), axis)
    first, second = (jnp.take(x, index, axis=axis, mode="clip") for index in (low, high))
    return first + (second - first) * fraction


def pil_bicubic(images: jax.Array, size: int = 224) -> jax.Array:
    """Pillow's bicubic resize of 8-bit images (a = -0.5, wider where images become smaller).

    `Image.resize((size, size), BICUBIC)` resizes columns, then rows, each rounded and clipped to
    0..255. Pillow's fixed-point arithmetic is used here too, so every bit is the same. Rows come
    first if more than twice as many rows as columns are dropped: Pillow 13 does so; before it
    columns always came first. For square images both orders are the same.

    Args:
      images: [b, h, w, c] uint8.
      size: side of the square result.

    Returns:
      [b, size, size, c] uint8.

    Raises:
      ValueError: `images` has another rank or dtype.
    """
    _check(images, (jnp.uint8,))
    _, height, width, _ = images.shape
    rows_first = height - size > max(0, 2 * (width - size))
    for axis in (1, 2) if rows_first else (2, 1):
        images = _filter(images, size, axis)
    return images


def _filter(x: jax.Array, size: int, axis: int) -> jax.Array:
    """One pass of `pil_bicubic` along an axis: uint8 -> uint8."""
    if x.shape[axis] == size:
        return x
    indices, weights = (jnp.asarray(table) for table in _bicubic_taps(x.shape[axis], size))
    x = x.astype(jnp.int32)

    def add_tap(i, total):
        return total + jnp.take(x, indices[i], axis, mode="clip") * _along(weights[i], axis)

    shape = (*x.shape[:axis], size, *x.shape[axis + 1 :])
    half = jnp.full(shape, 1 << (_PRECISION_BITS - 1), jnp.int32)
    total = jax.lax.fori_loop(0, len(indices), add_tap, half)
    return jnp.clip(total >> _PRECISION_BITS, 0, 255).astype(jnp.uint8)


def _bicubic_taps(length: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The weighted sum that makes each position of the result, as in Pillow.

    Returns:
      int32 [taps, size] each: positions in the image, and weights in units of 2**-22, which are 0
      for taps that a position does not need.
    """
    scale = length / size
    widening = max(scale, 1.0)
    support = 2.0 * widening
    centres = (np.arange(size) + 0.5) * scale
    first = np.maximum(np.trunc(centres - support + 0.5), 0).astype(np.int64)
    last = np.minimum(np.trunc(centres + support + 0.5), length).astype(np.int64)
    indices = first[None] + np.arange((last - first).max())[:, None]
    weights = _cubic((indices - centres[None] + 0.5) * (1.0 / widening))
    weights = np.where(indices < last[None], weights, 0.0)
    total = np.zeros(size)
    for row in weights:  # in order, as the last bit of a sum depends on it
        total += row
    scaled = weights / total[None] * (1 << _PRECISION_BITS)
    rounded = np.trunc(scaled + np.copysign(0.5, scaled))
    return np.minimum(indices, length - 1).astype(np.int32), rounded.astype(np.int32)


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution kernel with a = -0.5, float64."""
    a, x = -0.5, np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def _along(values: jax.Array | np.ndarray, axis: int) -> jax.Array | np.ndarray:
    """[n] reshaped to broadcast along one axis of [b, h, w, c]."""
    return values.reshape([-1 if i == axis else 1 for i in range(4)])


def _check(images: jax.Array, dtypes: tuple[DTypeLike, ...]) -> None:
    if images.ndim != 4 or 0 in images.shape or images.dtype not in dtypes:
        names = " or ".join(jnp.dtype(dtype).name for dtype in dtypes)
        raise ValueError(
            f"images must be [b, h, w, c] of {names}, found {images.shape} of {images.dtype}"
        )
