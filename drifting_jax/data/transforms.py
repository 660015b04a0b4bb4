"""From an encoded image to uint8 pixels: decoding, crops and flips, NumPy in and out.

There are two decoders. Pillow is the reference: its centre crop equals, pixel for pixel, the crop
that published ImageNet metrics are computed with. OpenCV is faster and differs by a few grey
levels, so it is for training only. Both ignore the rotation that EXIF asks for, as the reference
does.
"""

from __future__ import annotations

import dataclasses
import io
import math
from typing import TYPE_CHECKING

import numpy as np

from drifting_jax.data.image_formats import UnsupportedPixelsError, register_plugins, to_rgb
from drifting_jax.data.unreadable import reason_of, without_png_text

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

CROPS = ("center", "random_resized")
DECODERS = ("pillow", "opencv")
_ASPECT_RATIOS = (3 / 4, 4 / 3)  # width over height of random boxes


class UnreadableImage(ValueError):
    """The bytes are no whole image."""


class FailedRead(UnreadableImage):
    """The disk gave no bytes; another attempt may succeed."""


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Random changes of an image in training. The default changes nothing.

    Attributes:
      crop: "center", or "random_resized": a box of random position, area and aspect ratio.
      min_area: least share of the image's area that a random box covers; the largest is 1.
      flip: whether to mirror left to right with probability one half.
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
    """Decodes an image, crops it to a square and perhaps flips it.

    Args:
      data: bytes of a file, in any format that the decoder knows.
      size: side of the result in pixels.
      augmentation: None for the centre crop without randomness.
      rng: source of the augmentation's randomness.
      decoder: one of DECODERS. OpenCV decodes plain JPEG files only; files that it may read
        differently (CMYK, palettes, transparency, 16 bits, truncated files) go to Pillow.

    Returns:
      [size, size, 3] uint8.

    Raises:
      UnreadableImage: the bytes are no whole image.
      ValueError: a random augmentation without `rng`.
    """
    augmentation = augmentation or Augmentation()
    pixels = _decode_opencv(data) if decoder == "opencv" else None
    if pixels is not None:
        height, width = pixels.shape[:2]
        image = _crop_opencv(pixels, size, _box(augmentation, rng, height, width))
    else:
        picture = decode(data)
        width, height = picture.size
        box = _box(augmentation, rng, height, width)
        image = center_crop(picture, size) if box is None else _crop_pillow(picture, size, box)
    return _flipped(image, augmentation, rng)


def decode(data: bytes) -> PillowImage:
    """The Pillow image of a file's bytes, converted to RGB.

    As the reference does, it drops transparency instead of compositing, and ignores EXIF's
    rotation. Of several pictures in a file it takes the first. `to_rgb` says what becomes of 16-bit
    values.

    Raises:
      UnreadableImage: the bytes are no whole image, or of pixels that `to_rgb` refuses; the message
        says why.
    """
    from PIL import Image

    register_plugins()
    try:
        with Image.open(io.BytesIO(data)) as picture:
            return to_rgb(picture)
    except UnsupportedPixelsError as error:
        raise UnreadableImage(str(error)) from None
    # Damaged files make decoders raise nearly anything: OSError, SyntaxError, struct.error, …
    except Exception as error:
        if "MAX_TEXT" in str(error):  # Pillow's limit of a PNG's text, which the pixels do not need
            plain = without_png_text(data)
            if len(plain) < len(data):
                return decode(plain)
        raise UnreadableImage(reason_of(error, data)) from None


def center_crop(picture: PillowImage, size: int) -> np.ndarray:
    """The reference's centre crop [size, size, 3] uint8 of a Pillow image.

    The image is halved with a box filter while its short side is at least twice `size`, then
    resized with a bicubic filter to a short side of `size`, and the middle is cut out.

    Raises:
      UnreadableImage: the image is so thin that the resized one would not fit into memory.
    """
    from PIL import Image

    while min(picture.size) >= 2 * size:
        halved = (picture.width // 2, picture.height // 2)
        picture = picture.resize(halved, Image.Resampling.BOX)
    scale = size / min(picture.size)
    resized = (max(size, round(picture.width * scale)), max(size, round(picture.height * scale)))
    if math.prod(resized) > (Image.MAX_IMAGE_PIXELS or math.inf):
        raise UnreadableImage(f"too thin: {picture.size[0]}x{picture.size[1]} pixels")
    pixels = np.asarray(picture.resize(resized, Image.Resampling.BICUBIC))
    top, left = ((side - size) // 2 for side in pixels.shape[:2])
    return pixels[top : top + size, left : left + size]


def random_resized_box(
    rng: np.random.Generator, height: int, width: int, min_area: float
) -> tuple[int, int, int, int]:
    """A random box (top, left, height, width) of an image.

    Its area is uniform between `min_area` and 1 times the image's area, the logarithm of its aspect
    ratio is uniform between log(3/4) and log(4/3), and its position is uniform. If ten boxes do not
    fit, it is the largest central box with an allowed ratio.
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


def _box(
    augmentation: Augmentation, rng: np.random.Generator | None, height: int, width: int
) -> tuple[int, int, int, int] | None:
    """A random box (top, left, height, width); None for the centre crop."""
    if augmentation.crop != "random_resized":
        return None
    return random_resized_box(_required(rng), height, width, augmentation.min_area)


def _flipped(
    image: np.ndarray, augmentation: Augmentation, rng: np.random.Generator | None
) -> np.ndarray:
    if augmentation.flip and _required(rng).random() < 0.5:
        image = image[:, ::-1]
    return np.ascontiguousarray(image)


def _required(rng: np.random.Generator | None) -> np.random.Generator:
    if rng is None:
        raise ValueError("a random crop or flip draws from rng; found None")
    return rng


def _crop_pillow(picture: PillowImage, size: int, box: tuple[int, int, int, int]) -> np.ndarray:
    from PIL import Image

    top, left, height, width = box
    cut = picture.resize(
        (size, size), Image.Resampling.BICUBIC, box=(left, top, left + width, top + height)
    )
    return np.asarray(cut)


def _decode_opencv(data: bytes) -> np.ndarray | None:
    """[h, w, 3] uint8 RGB; None if OpenCV may fail or may read it differently from Pillow."""
    import cv2

    if not _is_plain_jpeg(data):
        return None
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        return None


def _is_plain_jpeg(data: bytes) -> bool:
    """Whether the bytes are a complete JPEG of one or three channels and of usual size."""
    from PIL import Image

    most = Image.MAX_IMAGE_PIXELS or math.inf
    if data[:3] != b"\xff\xd8\xff" or not data.endswith(b"\xff\xd9"):
        return False
    at = 2
    while at + 9 < len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # start of a frame
            height, width = (int.from_bytes(data[at + i : at + i + 2], "big") for i in (5, 7))
            return data[at + 9] in (1, 3) and height * width <= most
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return False


def _crop_opencv(
    pixels: np.ndarray, size: int, box: tuple[int, int, int, int] | None
) -> np.ndarray:
    """`_crop_pillow`, or for None `center_crop`, with OpenCV's filters."""
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
    """Augments a decoded image [h, w, 1 or 3] uint8 and keeps its shape."""
    from PIL import Image

    height, width, channels = image.shape
    box = _box(augmentation, rng, height, width)
    if box is not None:
        top, left, h, w = box
        picture = Image.fromarray(image[:, :, 0] if channels == 1 else image)
        picture = picture.resize(
            (width, height), Image.Resampling.BICUBIC, box=(left, top, left + w, top + h)
        )
        image = np.asarray(picture).reshape(height, width, channels)
    return _flipped(image, augmentation, rng)
