"""Facts about the records of a source: where they lie, in which format, what was skipped."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from drifting_jax.data.class_names import title

_NAMES_KEPT = 3
_TITLES_SHOWN = 5
_REASONS_SHOWN = 8


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


def describe(
    facts: SourceFacts, *, count: int, class_names: Sequence[str], noun: str = "image"
) -> list[str]:
    """Lines for a person: how many records and classes there are, where, and what was skipped."""
    nouns = noun + "s" * (count != 1)
    titles = ", ".join(title(name) for name in class_names[:_TITLES_SHOWN])
    more = ", …" * (len(class_names) > _TITLES_SHOWN)
    place = f" in {facts.where}" if facts.where else ""
    classes = f"{len(class_names)} class{'es' * (len(class_names) != 1)}"
    lines = [f"data: {count} {nouns} of {classes} ({titles}{more}){place}, format {facts.format}"]
    for skipped in facts.skipped[:_REASONS_SHOWN]:
        names = ", ".join(skipped.names) + ", …" * (skipped.count > len(skipped.names))
        lines.append(f"skipped {skipped.count} ({skipped.reason}): {names}")
    if others := facts.skipped[_REASONS_SHOWN:]:
        reasons = ", ".join(skipped.reason for skipped in others)
        lines.append(f"skipped {sum(skipped.count for skipped in others)} more ({reasons})")
    return lines
