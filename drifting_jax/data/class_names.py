"""Names of classes: ImageNet's table, and the titles and synonyms of a class."""

from __future__ import annotations

import functools
from importlib import resources

NUM_CLASSES = 1000  # ImageNet's


@functools.cache
def class_table() -> dict[str, str]:
    """{wnid: names} of ImageNet's 1000 classes, in the order of their labels: by wnid."""
    text = resources.files("drifting_jax.data").joinpath("imagenet_classes.txt").read_text("utf-8")
    return dict(line.split(" ", 1) for line in text.splitlines())


def title(class_name: str) -> str:
    """The first word for a class: "tench" for "n01440764". Other names stay as they are."""
    words = class_table().get(class_name)
    return words.split(", ")[0] if words else class_name


def aliases(class_name: str) -> list[str]:
    """All names of a class: its own, and ImageNet's words for it."""
    return [class_name, *filter(None, class_table().get(class_name, "").split(", "))]
