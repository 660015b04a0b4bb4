"""The image formats that the installed Pillow reads, and the conversion of their pixels to RGB."""

from __future__ import annotations

import contextlib
import functools
import importlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

# Documents, videos, drawings and containers: Pillow opens them by other programs or not at all.
_NOT_PICTURES = {"BUFR", "EPS", "FLI", "GRIB", "HDF5", "IPTC", "MPEG", "PDF", "WMF"}
_OPENED_BY = {"MPO": "JPEG"}  # formats that another format's plugin opens
_PLUGINS = ("pillow_heif", "pillow_avif", "pillow_jxl")
# What reads an ending that the installed Pillow does not.
_READ_BY = {
    ".avif": "a newer Pillow",
    **dict.fromkeys((".heic", ".heif", ".hif"), "pip install pillow-heif"),
    ".jxl": "pip install pillow-jxl-plugin",
}
_GREY_BITS = 16  # of integer images, if their file does not say otherwise
_TIFF_BITS_PER_SAMPLE = 258


class UnsupportedPixelsError(ValueError):
    """The pixels of an image have no known range; the message says what they are."""


@functools.cache
def register_plugins() -> None:
    """Lets Pillow use the plugins for HEIC, AVIF and JPEG XL that are installed."""
    for name in _PLUGINS:
        # A plugin that does not fit the installed Pillow raises nearly anything.
        with contextlib.suppress(Exception):
            module = importlib.import_module(name)
            if hasattr(module, "register_heif_opener"):
                module.register_heif_opener()


@functools.cache
def readable_suffixes() -> frozenset[str]:
    """The endings of image files that the installed Pillow reads, in lower case: {".jpg", …}."""
    from PIL import Image

    register_plugins()
    return frozenset(
        suffix.lower()
        for suffix, kind in Image.registered_extensions().items()
        if kind not in _NOT_PICTURES and _OPENED_BY.get(kind, kind) in Image.OPEN
    )


def advice_for(suffix: str) -> str:
    """What reads files of an ending that the installed Pillow does not read; "" if unknown."""
    return _READ_BY.get(suffix, "")


def to_rgb(picture: PillowImage) -> PillowImage:
    """Converts an open image to 8 bits and RGB.

    Grey values v of more than 8 bits become v // 256, as Pillow does with colours of 16 bits; those
    of TIFF files of 12 bits become v // 16. Transparency is dropped, not composited.

    Raises:
      UnsupportedPixelsError: pixels are floating-point numbers, integers outside 0..65535, or so
        small that all of them would become 0.
    """
    if picture.mode == "F":
        raise UnsupportedPixelsError(
            "its pixels are floating-point numbers, which have no fixed range: save it with 8 or "
            "16 bits"
        )
    if picture.mode == "I" or picture.mode.startswith("I;"):
        picture = _eight_bits(picture)
    return picture.convert("RGB")


def _eight_bits(picture: PillowImage) -> PillowImage:
    """An "L" image of an image of 16-bit or 32-bit integers."""
    from PIL import Image

    bits = _GREY_BITS
    if getattr(picture, "tag_v2", {}).get(_TIFF_BITS_PER_SAMPLE) == (12,):
        bits = 12
    values = np.asarray(picture)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= 1 << bits:
        raise UnsupportedPixelsError(
            f"its pixels are integers from {low} to {high}; expected 0..65535"
        )
    if 0 < high < 1 << (bits - 8):
        raise UnsupportedPixelsError(
            f"its pixels have {bits} bits, but values up to {high} only: the image would be black, "
            "so save it with 8 bits"
        )
    return Image.fromarray((values >> (bits - 8)).astype(np.uint8))
