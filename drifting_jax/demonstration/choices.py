"""What a visitor of the page can choose, and one line about what cannot be."""

import math
from collections.abc import Sequence
from typing import Any

from drifting_jax.data.class_names import class_table
from drifting_jax.errors import UserError

ALL_CLASSES = -1  # samples of all classes in turn
MOST_SAMPLES = 64  # in one picture
LARGEST_SEED = 2**32 - 1
_UNKNOWN_ALPHAS = (1.0, 4.0)
_MOST_COLUMNS = 16


def class_choices(class_names: Sequence[str]) -> list[tuple[str, int]]:
    """Returns what a list of classes shows, with the label behind it: ("7: cat", 7).

    A wnid of ImageNet is shown as its words. The first entry stands for all classes in turn.
    """
    table = class_table()
    words = [table.get(name, name) for name in class_names]
    shown = [name if name == str(i) else f"{i}: {name}" for i, name in enumerate(words)]
    return [("all classes in turn", ALL_CLASSES), *((text, i) for i, text in enumerate(shown))]


def class_text(label: int, class_names: Sequence[str]) -> str:
    """Returns what the list of classes shows for a label."""
    return next(text for text, value in class_choices(class_names) if value == label)


def alpha_bounds(trained: tuple[float, float] | None) -> tuple[float, float]:
    """Returns the smallest and largest guidance scale α that the page offers.

    From 1, guidance off, to a whole number beyond the largest α of training: half of the trained
    range more, and at least 1. From 1 to 4 where the range of training is unknown.
    """
    if trained is None:
        return _UNKNOWN_ALPHAS
    low, high = trained
    return min(1.0, low), float(math.ceil(high + max(1.0, (high - low) / 2)))


def whole_number(name: str, value: Any, low: int, high: int) -> int:
    """Returns a value as an int.

    Raises:
      UserError: it is no whole number from `low` to `high`.
    """
    number = _number(value)
    if number is None or not number.is_integer() or not low <= number <= high:
        raise UserError(f"{name}: expected a whole number from {low} to {high}; {_found(value)}")
    return int(number)


def number_within(name: str, value: Any, bounds: tuple[float, float]) -> float:
    """Returns a value as a float.

    Raises:
      UserError: it is no number within the bounds.
    """
    number = _number(value)
    if number is None or not bounds[0] <= number <= bounds[1]:
        raise UserError(
            f"{name}: expected a number from {bounds[0]:g} to {bounds[1]:g}; {_found(value)}"
        )
    return number


def one_of(name: str, value: Any, known: Sequence[Any]) -> Any:
    """Returns the value.

    Raises:
      UserError: it is not among the known ones.
    """
    if value not in known:
        raise UserError(f"{name}: expected one of the list; {_found(value)}")
    return value


def labels_of(label: int, count: int, num_classes: int) -> tuple[list[int], list[int]]:
    """Returns the labels of `count` samples, and their numbers within their classes."""
    if label != ALL_CLASSES:
        return [label] * count, list(range(count))
    return [i % num_classes for i in range(count)], [i // num_classes for i in range(count)]


def grid_columns(label: int, count: int, num_classes: int) -> int:
    """Returns the columns of a grid: about a square, or one column a class where that fits."""
    if label == ALL_CLASSES and num_classes <= min(count, _MOST_COLUMNS):
        return num_classes
    return math.ceil(math.sqrt(count))


def first_count(num_classes: int) -> tuple[int, int]:
    """Returns the label and the number of samples that the page begins with."""
    if num_classes <= _MOST_COLUMNS:
        return ALL_CLASSES, 4 * num_classes
    return 0, 16


def timing_line(
    count: int, seconds: float, compile_seconds: float | None, *, noun: str = "sample"
) -> str:
    """Returns what a picture took, in a sentence or two.

    Args:
      count: samples in the picture.
      seconds: of the program that made them, compiled before.
      compile_seconds: of the first call with so many samples; None for a later one.
      noun: what a sample is called.
    """
    samples = f"1 {noun}" if count == 1 else f"{count} {noun}s"
    each = "" if count == 1 else f", {1000 * seconds / count:.3g} ms a {noun}"
    line = f"{samples} in one network evaluation: **{1000 * seconds:.3g} ms**{each}."
    if compile_seconds is not None:
        line += f" The first call with {samples} also compiled: {compile_seconds:.1f} s."
    return line


def _number(value: Any) -> float | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None


def _found(value: Any) -> str:
    return "found nothing" if value is None or value == "" else f"found {str(value)[:40]}"
