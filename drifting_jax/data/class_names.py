"""What classes are called: ImageNet's table, titles, and the other names of a class."""

from __future__ import annotations

import functools
from importlib import resources

NUM_CLASSES = 1000  # of ImageNet


@functools.cache
def class_table() -> dict[str, str]:
    """{wnid: names} of ImageNet's 1000 classes in the order of their labels, the sorted wnids."""
    text = resources.files("drifting_jax.data").joinpath("imagenet_classes.txt").read_text("utf-8")
    return dict(line.split(" ", 1) for line in text.splitlines())


def title(class_name: str) -> str:
    """What a class is called: "tench" for "n01440764", other names as they are."""
    return class_table().get(class_name, class_name).split(", ")[0]


def aliases(class_name: str) -> list[str]:
    """All that a class answers to: its own name, and ImageNet's words for it."""
    return [class_name, *filter(None, class_table().get(class_name, "").split(", "))]
