"""From an encoded image to uint8 pixels: decoding, crops and flips, NumPy in and out.

Two decoders: Pillow's is the reference, whose centre crop equals the one that everyone's ImageNet
figures are computed with, pixel for pixel; OpenCV's is faster and differs by a few grey levels, so
it is for training alone. The rotation that EXIF asks for is ignored, as the reference does.
"""

from __future__ import annotations

import dataclasses
import io
import math
from typing import Any

import numpy as np

CROPS = ("center", "random_resized")
DECODERS = ("pillow", "opencv")
_ASPECT_RATIOS = (3 / 4, 4 / 3)  # of the boxes of random resized crops, width over height


class UnreadableImage(ValueError):
    """Bytes that are no whole image."""


class FailedRead(UnreadableImage):
    """Bytes that the disk did not give, perhaps only now."""


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """What a training pass does to an image.

    Attributes:
      crop: "center", or "random_resized": a box of random place, area and aspect ratio.
      min_area: least share of the image that a random box covers; the most is all of it.
      flip: mirror left to right with probability one half.
    """

    crop: str = "center"
    min_area: float = 0.2
    flip: bool = False


def load(
    data: bytes,
    size: int,
    *,
    augmentation: Augmentation | None = None,
    rng: np.random.Generator | None = None,
    decoder: str = "pillow",
) -> np.ndarray:
    """Decodes, crops to a square and perhaps flips.

    Args:
      data: a file's bytes, of any format the decoder knows.
      size: side of the result in pixels.
      augmentation: None for the centre crop alone, without randomness.
      rng: what the augmentation draws from.
      decoder: one of DECODERS; OpenCV leaves what it may read otherwise (CMYK, palettes,
        transparency, 16 bits, files cut short) to Pillow.

    Returns:
      [size, size, 3] uint8.

    Raises:
      UnreadableImage: the bytes are no whole image.
    """
    augmentation = augmentation or Augmentation()
    random_box = augmentation.crop == "random_resized"
    # A random box needs the pixels it covers, the centre crop all of them.
    pixels = _decode_opencv(data) if decoder == "opencv" else None
    if pixels is not None:
        height, width = pixels.shape[:2]
        box = random_resized_box(rng, height, width, augmentation.min_area) if random_box else None
        image = _crop_opencv(pixels, size, box)
    else:
        picture = decode(data)
        width, height = picture.size
        box = random_resized_box(rng, height, width, augmentation.min_area) if random_box else None
        image = center_crop(picture, size) if box is None else _crop_pillow(picture, size, box)
    if augmentation.flip and rng.random() < 0.5:
        image = image[:, ::-1]
    return np.ascontiguousarray(image)


def decode(data: bytes):
    """The Pillow image of a file's bytes, converted to RGB.

    As the reference does, it drops transparency instead of compositing, ignores EXIF's rotation,
    and clips 16 bits at 255: convert such images to 8 bits before.

    Raises:
      UnreadableImage: the bytes are no whole image.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as picture:
            return picture.convert("RGB")
    # Damaged files make decoders raise nearly anything: OSError, SyntaxError, struct.error, …
    except Exception as error:
        raise UnreadableImage(str(error) or type(error).__name__) from None


def center_crop(picture: Any, size: int) -> np.ndarray:
    """The reference's centre crop: [size, size, 3] uint8 of a Pillow image.

    Halves the image with a box filter while its short side is at least twice `size`, brings the
    short side to `size` with a bicubic filter, and cuts out the middle.

    Raises:
      UnreadableImage: it is so thin that it would be too large to hold.
    """
    from PIL import Image

    while min(picture.size) >= 2 * size:
        picture = picture.resize(tuple(x // 2 for x in picture.size), Image.Resampling.BOX)
    scale = size / min(picture.size)
    resized = tuple(max(size, round(x * scale)) for x in picture.size)
    if math.prod(resized) > Image.MAX_IMAGE_PIXELS:
        raise UnreadableImage(f"too thin: {picture.size[0]}x{picture.size[1]} pixels")
    pixels = np.asarray(picture.resize(resized, Image.Resampling.BICUBIC))
    top, left = ((side - size) // 2 for side in pixels.shape[:2])
    return pixels[top : top + size, left : left + size]


def random_resized_box(
    rng: np.random.Generator, height: int, width: int, min_area: float
) -> tuple[int, int, int, int]:
    """A random box (top, left, height, width) of an image.

    Its area is uniform between `min_area` and 1 of the image's, the logarithm of its aspect ratio
    uniform between those of 3/4 and 4/3, its place uniform. After ten that do not fit, the largest
    central box with an allowed ratio.
    """
    low, high = _ASPECT_RATIOS
    for _ in range(10):
        area = height * width * rng.uniform(min_area, 1.0)
        ratio = math.exp(rng.uniform(math.log(low), math.log(high)))
        h, w = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < h <= height and 0 < w <= width:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    h, w = min(height, round(width / low)), min(width, round(height * high))
    return (height - h) // 2, (width - w) // 2, h, w


def _crop_pillow(picture: Any, size: int, box: tuple[int, int, int, int]) -> np.ndarray:
    from PIL import Image

    top, left, height, width = box
    cut = picture.resize(
        (size, size), Image.Resampling.BICUBIC, box=(left, top, left + width, top + height)
    )
    return np.asarray(cut)


def _decode_opencv(data: bytes) -> np.ndarray | None:
    """[h, w, 3] uint8 RGB, or None where OpenCV may fail or read it otherwise than Pillow."""
    import cv2

    if not _is_plain_jpeg(data):
        return None
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        return None


def _is_plain_jpeg(data: bytes) -> bool:
    """Whether the bytes are a JPEG of one or three colours, not huge, with its end in place."""
    from PIL import Image

    if data[:3] != b"\xff\xd8\xff" or not data.endswith(b"\xff\xd9"):
        return False
    at = 2
    while at + 9 < len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # start of a frame
            height, width = (int.from_bytes(data[at + i : at + i + 2], "big") for i in (5, 7))
            return data[at + 9] in (1, 3) and height * width <= Image.MAX_IMAGE_PIXELS
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return False


def _crop_opencv(
    pixels: np.ndarray, size: int, box: tuple[int, int, int, int] | None
) -> np.ndarray:
    """As `center_crop` or `_crop_pillow`, with OpenCV's filters."""
    import cv2

    if box is None:
        while min(pixels.shape[:2]) >= 2 * size:
            half = (pixels.shape[1] // 2, pixels.shape[0] // 2)
            pixels = cv2.resize(pixels, half, interpolation=cv2.INTER_AREA)
        side = min(pixels.shape[:2])
        top, left = ((x - side) // 2 for x in pixels.shape[:2])
        box = (top, left, side, side)
    top, left, height, width = box
    cut = pixels[top : top + height, left : left + width]
    smaller = size < min(height, width)
    filter_ = cv2.INTER_AREA if smaller else cv2.INTER_CUBIC
    return cv2.resize(cut, (size, size), interpolation=filter_)


def augment(image: np.ndarray, augmentation: Augmentation, rng: np.random.Generator) -> np.ndarray:
    """Augments an image that is decoded and has its size: [h, w, 1 or 3] uint8 -> the same."""
    from PIL import Image

    height, width, channels = image.shape
    if augmentation.crop == "random_resized":
        box = random_resized_box(rng, height, width, augmentation.min_area)
        top, left, h, w = box
        picture = Image.fromarray(image[:, :, 0] if channels == 1 else image)
        picture = picture.resize(
            (width, height), Image.Resampling.BICUBIC, box=(left, top, left + w, top + h)
        )
        image = np.asarray(picture).reshape(height, width, channels)
    if augmentation.flip and rng.random() < 0.5:
        image = image[:, ::-1]
    return np.ascontiguousarray(image)
