"""What a config's fields must be: names, types, ranges, and how they go together.

Every mistake is a `UserError` of one line that names the field.
"""

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from drifting_jax.config.defaults import AT_MOST_ONE, BELOW_ONE, CHOICES, MAY_BE_EMPTY, MAY_BE_ZERO
from drifting_jax.errors import UserError


def check_fields(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Checks the fields of a config in plain dicts and tuples against its task's defaults.

    Raises:
      UserError: As `config.validate`.
    """
    default, found = flat(defaults), flat(values)
    for name in found:
        if name not in default:
            raise UserError(unknown_field(name, default))
    for name in default:
        if name not in found:
            raise UserError(f"config.{name} is missing: start from base_config({values['task']!r})")
        _check_type(name, found[name], default[name])
        _check_value(name, found[name])
    _check_relations(found)


def unknown_field(name: str, fields: Mapping[str, Any]) -> str:
    """One line on a field that does not exist, with the nearest: same section first, then any."""
    sections = {prefix for field in fields for prefix in _prefixes(field)}
    if name in sections:
        return f"config.{name} is a section with fields of its own: set one of those"
    if any(name.startswith(f"{field}.") for field in fields):
        return f"config.{name.rpartition('.')[0]} is a value and has no field of its own"
    names = [*fields, *sections]
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
    leaf = name.rpartition(".")[2]
    same_leaf = [field for field in fields if field.rpartition(".")[2] == leaf]
    nearest = difflib.get_close_matches(name, same_leaf, n=1, cutoff=0.0) or near
    return f"config.{name} does not exist; the nearest field is config.{nearest[0]}"


def flat(values: Mapping[str, Any] | ConfigDict, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}; an empty section vanishes."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping | ConfigDict):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def _check_type(name: str, value: Any, default: Any) -> None:
    if isinstance(default, tuple):
        if not isinstance(value, tuple):
            raise UserError(f"config.{name} must be a tuple like {default!r}; found {value!r}")
        if not value and name not in MAY_BE_EMPTY:
            raise UserError(f"config.{name} must have at least one entry")
        for entry in value if default else ():
            _check_type(name, entry, default[0])
        return
    expected = type(default)
    right = type(value) is expected or (expected is float and type(value) is int)
    if not right:
        raise UserError(f"config.{name} must be of type {expected.__name__}; found {value!r}")


def _check_value(name: str, value: Any) -> None:
    if name == "mesh.rules":
        return _check_rules(value)
    if name in CHOICES and value not in CHOICES[name]:
        raise UserError(f"config.{name} must be one of {listed(CHOICES[name])}; found {value!r}")
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, bool | str) or (name in ("mesh.data", "mesh.fsdp") and number == -1):
            continue
        if not math.isfinite(number):
            raise UserError(f"config.{name} must be finite; found {value!r}")
        if number < 0 or (number == 0 and name not in MAY_BE_ZERO):
            bound = "zero or above" if name in MAY_BE_ZERO else "above zero"
            raise UserError(f"config.{name} must be {bound}; found {value!r}")
        if name in AT_MOST_ONE and number > 1:
            raise UserError(f"config.{name} must be at most 1; found {value!r}")
        if name in BELOW_ONE and number >= 1:
            raise UserError(f"config.{name} must be below 1; found {value!r}")
    return None


def _check_rules(rules: tuple) -> None:
    for rule in rules:
        pair = isinstance(rule, tuple) and len(rule) == 2 and isinstance(rule[1], tuple)
        if not pair or not isinstance(rule[0], str):
            raise UserError(
                "config.mesh.rules must hold pairs like ('attention/.*kernel', (None, 'fsdp')); "
                f"found {rule!r}"
            )
        entries = [entry if isinstance(entry, tuple) else (entry,) for entry in rule[1]]
        named = [axis for entry in entries for axis in entry if axis is not None]
        if not set(named) <= {"data", "fsdp"} or len(named) != len(set(named)):
            raise UserError(
                "config.mesh.rules may name the mesh axes 'data' and 'fsdp', each once in a rule; "
                f"found {rule!r}"
            )
        try:
            re.compile(rule[0])
        except re.error as error:
            raise UserError(f"config.mesh.rules has the bad regex {rule[0]!r}: {error}") from None


def _check_relations(field: Mapping[str, Any]) -> None:
    """Checks between two fields, each as (smaller, larger) or (divisor, multiple)."""
    ordered = [
        ("guidance.minimum", "guidance.maximum"),
        ("encoder.train.mask_ratio_min", "encoder.train.mask_ratio_max"),
        ("encoder.train.classifier_steps", "encoder.train.num_steps"),
    ]
    if not field.get("queue.allow_repeats", True):
        ordered += [
            ("train.positives_per_label", "queue.per_class"),
            ("train.unconditional_per_label", "queue.unconditional"),
        ]
    for small, large in ordered:
        if small in field and field[small] > field[large]:
            raise UserError(
                f"config.{small} must be at most config.{large}; "
                f"found {field[small]} and {field[large]}"
            )
    _check_schedules(field)
    for divisor, multiple in (
        ("model.num_heads", "model.width"),
        ("encoder.groups", "encoder.width"),
    ):
        if divisor in field and field[multiple] % field[divisor]:
            raise UserError(
                f"config.{divisor} must divide config.{multiple}; "
                f"found {field[divisor]} and {field[multiple]}"
            )
    if field.get("guidance.minimum", 1.0) < 1:
        raise UserError(
            "config.guidance.minimum must be at least 1, where guidance is off; found "
            f"{field['guidance.minimum']}"
        )
    by_piece = field.get("train.shared_statistics") == "microbatch"
    if by_piece and not field["train.microbatches"]:
        raise UserError(
            "config.train.shared_statistics='microbatch' needs config.train.microbatches as a "
            "number: with 0, as many as the devices need, the loss would depend on the devices"
        )
    decay, decays = field["eval.ema_decay"], field["train.ema_decays"]
    if decay not in decays:
        raise UserError(
            f"config.eval.ema_decay must be one of config.train.ema_decays {decays}; found {decay}"
        )


def _check_schedules(field: Mapping[str, Any]) -> None:
    for optimizer, training in (("optim", "train"), ("encoder.train", "encoder.train")):
        steps, warmup = f"{training}.num_steps", f"{optimizer}.warmup_steps"
        cosine = field.get(f"{optimizer}.schedule") == "cosine"
        if cosine and field[steps] <= field[warmup]:
            raise UserError(
                f"config.{steps} must be above config.{warmup} for a cosine schedule; found "
                f"{field[steps]} and {field[warmup]}"
            )


def _prefixes(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts))]


def listed(names: Sequence[str] | Mapping[str, Any]) -> str:
    """Names in quotes, for a message."""
    return ", ".join(repr(name) for name in names)
