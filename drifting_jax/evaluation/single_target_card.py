"""What folders for the Hub keep of the evaluation of policies and pairs, and its table in a card.

The files may be of others: what is damaged or cannot be shown is found before it is used.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from drifting_jax.errors import UserError
from drifting_jax.evaluation.metrics.single_target import NAMES
from drifting_jax.files import read_json

EVALUATION = "evaluation.json"
# What a damaged file of JSON raises where it is read.
DAMAGED = (OSError, UserError, KeyError, TypeError, AttributeError)
_LARGEST = 1e12  # of any number in a table


def read_evaluation(
    folder: Path, is_evaluation: Callable[[Mapping[str, Any]], bool]
) -> tuple[dict[str, Any], list[Path]]:
    """Returns what evaluation.json of a folder says, empty without one, and the damaged files.

    Args:
      folder: of a run or for the Hub.
      is_evaluation: whether it can be shown; it may raise one of `DAMAGED` if not.
    """
    path = folder / EVALUATION
    try:
        found = read_json(path) if path.is_file() else {}
        if not is_evaluation(found):
            raise UserError(f"{path} is no evaluation")
    except DAMAGED:
        return {}, [path]
    return found, []


def has_metrics(found: Mapping[str, Any], parts: Mapping[str, str]) -> bool:
    """Whether `metrics_table` can show an evaluation. Raises one of `DAMAGED` if not, too."""
    values = [found[part][name] for part in parts if part in found for name in NAMES]
    return all(map(is_number, values)) and is_json(found)


def metrics_table(found: Mapping[str, Any], parts: Mapping[str, str], title: str) -> str | None:
    """Returns the metrics of the parts that were measured in Markdown; None if none were.

    Args:
      found: an evaluation, {part: metrics}.
      parts: {part: what a row is called}.
      title: of the table.
    """
    lines = [f"| {title} | {' | '.join(NAMES)} |", "|---" * (len(NAMES) + 1) + "|"]
    for part, words in parts.items():
        if part in found:
            cells = " | ".join(f"{found[part][name]:.4f}" for name in NAMES)
            lines.append(f"| {words} | {cells} |")
    return "\n".join(lines) if len(lines) > 2 else None


def is_json(record: Mapping[str, Any]) -> bool:
    """Whether it can be written again: Python reads numbers that JSON does not have."""
    try:
        json.dumps(record, allow_nan=False)
    except ValueError:
        return False
    return True


def is_number(value: Any) -> bool:
    """Whether a table can show it as a number."""
    return type(value) in (int, float) and abs(value) < _LARGEST
