"""Grids of images and PNG files."""

import math
import os
from pathlib import Path

import numpy as np
from PIL import Image

_GREY = 112  # between the images of a grid


def image_grid(images: np.ndarray, columns: int, *, least: int = 0) -> np.ndarray:
    """Lays images out in rows of `columns`, in reading order, with grey lines between them.

    The last row is filled up with grey.

    Args:
      images: [n, h, w, c] uint8.
      columns: Images a row.
      least: The shorter side gets at least so many pixels, by repeating each pixel.

    Returns:
      [height, width, c] uint8.

    Raises:
      ValueError: The images are not uint8 of rank 4, there are none, or columns is not positive.
    """
    if images.ndim != 4 or images.dtype != np.uint8 or not len(images) or columns < 1:
        raise ValueError(
            "image_grid needs images [n, h, w, c] uint8 and a positive number of columns; found "
            f"{images.shape} {images.dtype} and {columns}"
        )
    n, h, w, c = images.shape
    rows = math.ceil(n / columns)
    gap = max(1, min(h, w) // 32)
    tiles = np.full((rows * columns, h + gap, w + gap, c), _GREY, np.uint8)
    tiles[:n, gap:, gap:] = images
    tiles = tiles.reshape(rows, columns, h + gap, w + gap, c).transpose(0, 2, 1, 3, 4)
    grid = tiles.reshape(rows * (h + gap), columns * (w + gap), c)
    grid = np.pad(grid, ((0, gap), (0, gap), (0, 0)), constant_values=_GREY)
    factor = max(1, math.ceil(least / min(grid.shape[:2])))
    return grid.repeat(factor, axis=0).repeat(factor, axis=1)


def save_png(path: str | os.PathLike, image: np.ndarray) -> None:
    """Writes an image [h, w, 1 or 3] uint8 as a PNG file, with the directories above it.

    Raises:
      ValueError: The image has another shape or dtype.
    """
    picture = as_pillow(image)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, format="PNG")


def as_pillow(image: np.ndarray) -> Image.Image:
    """Returns Pillow's form of an image [h, w, 1 or 3] uint8.

    Raises:
      ValueError: The image has another shape or dtype.
    """
    check_image(image)
    return Image.fromarray(image[:, :, 0] if image.shape[-1] == 1 else image)


def check_image(image: np.ndarray) -> None:
    """Raises ValueError unless the image is [h, w, 1 or 3] uint8."""
    if image.ndim != 3 or image.shape[-1] not in (1, 3) or image.dtype != np.uint8:
        raise ValueError(
            f"an image must be [h, w, 1 or 3] uint8; found {image.shape} {image.dtype}"
        )
