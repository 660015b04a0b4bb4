"""Checks of a config: names, types, bounds, and rules between two fields.

Every mistake is a `UserError` of one line that names the field.
"""

import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Any

from drifting_jax.config.encoder_lists import check_encoders
from drifting_jax.config.field import Field
from drifting_jax.errors import UserError


def check_fields(values: Mapping[str, Any], fields: Mapping[str, Field]) -> None:
    """Checks the values of a config, by dotted names, against the fields of its task.

    Raises:
      UserError: As `config.validate`.
    """
    for name in values:
        if name not in fields:
            raise UserError(unknown_field(name, fields))
    for name, field in fields.items():
        if name not in values:
            raise UserError(f"config.{name} is missing: start from base_config({values['task']!r})")
        value = field.meant(values[name])
        _check_type(name, value, field.default, may_be_empty=field.may_be_empty)
        _check_value(name, value, field)
    _check_relations(values)


def unknown_field(name: str, fields: Iterable[str]) -> str:
    """Returns a line that says that a field does not exist and names the nearest.

    A field of the same name in another section is nearer than one that is only spelled alike.
    """
    fields = list(fields)
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


def listed(names: Iterable[str]) -> str:
    """Returns names in quotes with commas, for a message."""
    return ", ".join(repr(name) for name in names)


def _check_type(name: str, value: Any, default: Any, *, may_be_empty: bool = False) -> None:
    if isinstance(default, tuple):
        if not isinstance(value, tuple):
            raise UserError(f"config.{name} must be a tuple like {default!r}; found {value!r}")
        if not value and not may_be_empty:
            raise UserError(f"config.{name} must have at least one entry")
        for entry in value if default else ():
            _check_type(name, entry, default[0])
        return
    expected = type(default)
    right = type(value) is expected or (expected is float and type(value) is int)
    if not right:
        raise UserError(f"config.{name} must be of type {expected.__name__}; found {value!r}")


def _check_value(name: str, value: Any, field: Field) -> None:
    if field.check is not None:
        field.check(name, value)
        return
    if field.choices and value not in field.choices:
        raise UserError(f"config.{name} must be one of {listed(field.choices)}; found {value!r}")
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, bool | str) or number in field.also:
            continue
        if isinstance(number, float) and not math.isfinite(number):
            raise UserError(f"config.{name} must be finite; found {value!r}")
        if bound := _broken_bound(number, field):
            raise UserError(f"config.{name} must be {bound}; found {value!r} ({field.doc})")
        if isinstance(number, int) and abs(number) >= 2**63:
            raise UserError(f"config.{name} must be below 2**63 in size; found {value!r}")


def _broken_bound(number: float, field: Field) -> str:
    """Returns the bound that a number breaks, such as "at most 1"; empty where it keeps all."""
    also = "".join(f" or {value}" for value in field.also)
    if field.minimum is None and number <= 0:
        return f"above zero{also}"
    if field.minimum is not None and number < field.minimum:
        bound = f"at least {_shown(field.minimum)}" if field.minimum else "zero or above"
        return f"{bound}{also}"
    if field.maximum is not None and number > field.maximum:
        return f"at most {_shown(field.maximum)}{also}"
    if field.below is not None and number >= field.below:
        return f"below {_shown(field.below)}{also}"
    return ""


def _shown(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"


def _check_relations(values: Mapping[str, Any]) -> None:
    """Checks the rules between two fields."""
    ordered = [  # (smaller, larger)
        ("guidance.minimum", "guidance.maximum"),
        ("encoder.train.mask_ratio_min", "encoder.train.mask_ratio_max"),
        ("encoder.train.classifier_steps", "encoder.train.num_steps"),
        ("train.nearest_positives", "train.positives_per_label"),
        ("optim.end_learning_rate", "optim.learning_rate"),
    ]
    if not values.get("queue.allow_repeats", True) and values["queue.kind"] == "class":
        ordered += [
            ("train.positives_per_label", "queue.per_class"),
            ("train.unconditional_per_label", "queue.unconditional"),
        ]
    for small, large in ordered:
        if small in values and values[small] > values[large]:
            raise UserError(
                f"config.{small} must be at most config.{large}; "
                f"found {values[small]} and {values[large]}"
            )
    _check_schedules(values)
    if "pixel_encoders.kinds" in values:
        check_encoders(values)
    _check_dataset_queue(values)
    for divisor, multiple in (
        ("model.num_heads", "model.width"),
        ("encoder.groups", "encoder.width"),
    ):
        is_unread = divisor == "model.num_heads" and values.get("model.kind") == "mlp"
        if divisor in values and values[multiple] % values[divisor] and not is_unread:
            raise UserError(
                f"config.{divisor} must divide config.{multiple}; "
                f"found {values[divisor]} and {values[multiple]}"
            )
    of_microbatches = values.get("train.shared_statistics") == "microbatch"
    if of_microbatches and not values["train.microbatches"]:
        raise UserError(
            "config.train.shared_statistics='microbatch' needs config.train.microbatches as a "
            "number: with 0, as many as the devices need, the loss would depend on the devices"
        )
    decay, decays = values["eval.ema_decay"], values["train.ema_decays"]
    if decay not in decays:
        raise UserError(
            f"config.eval.ema_decay must be one of config.train.ema_decays {decays}; found {decay}"
        )


def _check_dataset_queue(values: Mapping[str, Any]) -> None:
    """Checks what does not go with the whole data set on the devices."""
    if values.get("queue.kind") != "dataset":
        return
    if values["train.nearest_positives"]:
        raise UserError(
            "config.train.nearest_positives needs features of the samples, which "
            "config.queue.kind='dataset' does not keep: use 'class', or 0; found "
            f"{values['train.nearest_positives']}"
        )
    if values["data.latent"]:
        raise UserError(
            "config.queue.kind='dataset' keeps one version of each sample, and latents are drawn "
            "anew at each pass over the data: use config.queue.kind='class'"
        )
    if values["data.crop"] != "center":
        raise UserError(
            "config.queue.kind='dataset' keeps one crop of each image: config.data.crop must be "
            f"'center'; found {values['data.crop']!r}"
        )


def _check_schedules(values: Mapping[str, Any]) -> None:
    for optimizer, training in (("optim", "train"), ("encoder.train", "encoder.train")):
        steps, warmup = f"{training}.num_steps", f"{optimizer}.warmup_steps"
        cosine = values.get(f"{optimizer}.schedule") == "cosine"
        if cosine and values[steps] <= values[warmup]:
            raise UserError(
                f"config.{steps} must be above config.{warmup} for a cosine schedule; found "
                f"{values[steps]} and {values[warmup]}: lower the second"
            )


def _prefixes(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts))]
