"""Why an image cannot be read, and how many unreadable images a data set may hold."""

from __future__ import annotations

import struct
from pathlib import Path

from drifting_jax.files import read_json_lines

_LONGEST = 200  # characters of a reason
_SHOWN = 24  # bytes of a file that is no image
_PNG = b"\x89PNG\r\n\x1a\n"
_TEXT_CHUNKS = (b"tEXt", b"zTXt", b"iTXt")
_SIGNATURES = (b"\xff\xd8\xff", _PNG, b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")


def most_unreadable(share: float, count: int) -> int:
    """How many of `count` records may be unreadable: a share of them, and at least one.

    A small data set may thus hold one unreadable record, whatever its size. A share of 0 allows
    none.
    """
    return max(1, int(share * count)) if share else 0


def read_reasons(path: Path) -> dict[int, str]:
    """{index: reason} of unreadable records, from a file of JSON lines.

    A missing file is empty, and lines that a kill cut short are left out. Lines of older versions
    have no reason: it is "".
    """
    found: dict[int, str] = {}
    if path.is_file():
        for record in read_json_lines(path):
            if type(index := record.get("index")) is int:
                found[index] = str(record.get("reason", ""))
    return found


def reason_of(error: Exception, data: bytes) -> str:
    """One line that says why a decoder refused the bytes of a file.

    Args:
      error: what the decoder raised.
      data: the whole file.

    Returns:
      Text that begins with "empty file", "not an image", "too many pixels", "truncated" or
      "damaged".
    """
    from PIL import Image, UnidentifiedImageError

    text = " ".join(str(error).split()) or type(error).__name__
    if not data:
        return "empty file"
    if isinstance(error, Image.DecompressionBombError):
        return f"too many pixels: {text.partition(', could be')[0]}"[:_LONGEST]
    if isinstance(error, UnidentifiedImageError):
        if not data.startswith(_SIGNATURES):
            return f"not an image: it begins with {data[:_SHOWN]!r}"
        text = "its header cannot be read"
    truncated = isinstance(error, EOFError) or "truncated" in text.lower() or _is_cut_webp(data)
    return f"{'truncated' if truncated else 'damaged'} ({len(data)} bytes): {text}"[:_LONGEST]


def without_png_text(data: bytes) -> bytes:
    """A PNG file without its text chunks; other bytes as they are.

    Generators of images store their whole workflow as text, which may be larger than Pillow's
    limit. The pixels do not depend on it.
    """
    if not data.startswith(_PNG):
        return data
    kept, at = [_PNG], len(_PNG)
    while at + 8 <= len(data):
        (size,) = struct.unpack_from(">I", data, at)
        end = at + 12 + size  # length, type, content, checksum
        if data[at + 4 : at + 8] not in _TEXT_CHUNKS:
            kept.append(data[at:end])
        at = end
    return b"".join(kept)


def _is_cut_webp(data: bytes) -> bool:
    """Whether a WebP file is shorter than its header says; the decoder does not tell."""
    return data[:4] == b"RIFF" and struct.unpack_from("<I", data + bytes(8), 4)[0] + 8 > len(data)
