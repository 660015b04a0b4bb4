"""Facts about the records of a source: where they lie, in which format, what was skipped."""

from __future__ import annotations

import dataclasses
from pathlib import Path

_NAMES_KEPT = 3


@dataclasses.dataclass(frozen=True)
class Skipped:
    """Files or folders that hold no usable record.

    Attributes:
      reason: an ending such as ".txt", or a few words such as "hidden".
      count: how many were skipped for this reason.
      names: the first few of them.
    """

    reason: str
    count: int
    names: tuple[str, ...]

    @classmethod
    def of(cls, reason: str, names: list[str]) -> Skipped:
        """Counts all names and keeps the first of them in sorted order."""
        return cls(reason, len(names), tuple(sorted(names)[:_NAMES_KEPT]))


@dataclasses.dataclass(frozen=True)
class SourceFacts:
    """Facts about the records of a source, besides their shape and classes.

    Attributes:
      format: how the records are stored: "memory", "folder", "tfds", "idx", "cifar python",
        "cifar binary", "drifting_jax.images" or "drifting_jax.latents".
      where: the folder or archive of the records; None for records without one.
      skipped: what the folder holds besides usable records.
      crop: the crop that latents were made of, "center" or "random_resized"; None for images, which
        are cropped when they are drawn.
    """

    format: str
    where: Path | None = None
    skipped: tuple[Skipped, ...] = ()
    crop: str | None = None
