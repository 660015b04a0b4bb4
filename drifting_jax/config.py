"""Configs: the defaults of each task, their checks, and the copy that a workdir keeps.

A config is an `ml_collections.ConfigDict` with the fields of `defaults.py`. A config file is a
plain `get_config()` that starts from `base_config(task)` and changes fields; the command line
changes them with `--config.section.field=value`. Mistakes are `UserError`s of one line that name
the field.
"""

import difflib
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_collections

from drifting_jax.defaults import (
    AT_MOST_ONE,
    BELOW_ONE,
    CHOICES,
    DEFAULTS,
    MAY_BE_EMPTY,
    MAY_BE_ZERO,
)
from drifting_jax.errors import UserError
from drifting_jax.files import write_json

ConfigDict = ml_collections.ConfigDict

# What a resumed run may change without becoming another run: where it runs and what it prints.
_MAY_CHANGE = re.compile(
    r"mesh\..*|eval\..*|log_every|data\.(num_workers|path|max_unreadable|log_batches)"
    r"|train\.(sample_every|save_every|keep|keep_every|max_skipped_in_a_row|microbatches)"
    r"|encoder\.train\.(save_every|microbatches)"
)
_MAY_GROW = {"train.num_steps"}
_ENCODER_MAY_GROW = {"encoder.train.num_steps"}  # of a run of task "encoder"

_PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def base_config(task: str) -> ConfigDict:
    """Returns the default config of a task, "generator" or "toy"; a field it lacks cannot be set.

    Raises:
      UserError: There is no such task.
    """
    if task not in DEFAULTS:
        raise UserError(f"config.task must be one of {_listed(DEFAULTS)}; found {task!r}")
    return ConfigDict(_plain(DEFAULTS[task])).lock()


def check_variant(path: str, variant: str, known: Iterable[str]) -> None:
    """Raises UserError where a config file (its `__file__`) has no such variant."""
    if variant not in (known := list(known)):
        raise UserError(
            f"configs/{Path(path).name} has no variant {variant!r}; it knows {', '.join(known)}"
        )


def file_beside(path: str, name: str) -> ModuleType:
    """Another config file in the folder of this one (its `__file__`): configs are no package."""
    spec = importlib.util.spec_from_file_location(Path(name).stem, Path(path).with_name(name))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def resolve(config: ConfigDict) -> ConfigDict:
    """Returns a locked copy: references followed, tuples for lists, floats where floats are due.

    Raises:
      UserError: As `validate`.
    """
    values = _plain(config)
    validate(values)
    return ConfigDict(_like(values, DEFAULTS[values["task"]])).lock()


def validate(config: ConfigDict | Mapping[str, Any]) -> None:
    """Checks every field of a config against its task's defaults: names, types, values, relations.

    Raises:
      UserError: A field is unknown (the nearest is named), missing, of a wrong type or out of
        range, or two do not go together.
    """
    values = _plain(config)
    task = values.get("task")
    if not isinstance(task, str) or task not in DEFAULTS:
        raise UserError(f"config.task must be one of {_listed(DEFAULTS)}; found {task!r}")
    default, found = flat(DEFAULTS[task]), flat(values)
    for name in found:
        if name not in default:
            raise UserError(unknown_field(name, default))
    for name in default:
        if name not in found:
            raise UserError(f"config.{name} is missing: start from base_config({task!r})")
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
        raise UserError(f"config.{name} must be one of {_listed(CHOICES[name])}; found {value!r}")
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


def default_workdir(config_path: str) -> Path:
    """Returns runs/<config>[_<variant>] for the value of --config, "path/<config>.py[:variant]"."""
    path, _, variant = config_path.partition(":")
    name = "_".join(filter(None, [Path(path).stem, re.sub(r"[^\w.-]+", "-", variant)]))
    return Path("runs") / name


def save_config(workdir: str | os.PathLike, config: ConfigDict) -> None:
    """Writes <workdir>/config.json, atomically: the resolved config and the versions it ran with.

    Raises:
      UserError: As `validate`.
    """
    record = {"config": _plain(resolve(config)), "versions": versions()}
    workdir = Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(workdir / "config.json", record)


def load_config(workdir: str | os.PathLike) -> ConfigDict:
    """Returns the config that `save_config` wrote, as it was: fields are not checked against ours.

    Raises:
      UserError: The workdir holds no config, or one that cannot be read.
    """
    path = Path(workdir) / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))["config"]
        return ConfigDict(_plain(values)).lock()
    except FileNotFoundError:
        raise UserError(f"{workdir} holds no run: there is no {path}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a config that a run wrote: {error!r}") from None


def check_resume(stored: ConfigDict, current: ConfigDict) -> None:
    """Checks that a run which began with `stored` may go on with `current`.

    Where it runs and what it prints and saves may differ, and a number of steps may grow.

    Raises:
      UserError: Another field differs; named, with both values.
    """
    if stored.task != current.task:
        raise UserError(
            f"the workdir holds a run of task {stored.task!r}, this config is of task "
            f"{current.task!r}: use another --workdir"
        )
    old, new = flat(_plain(stored)), flat(_plain(current))
    growing = _ENCODER_MAY_GROW if current.task == "encoder" else _MAY_GROW
    fixed = set()
    if old.get("train.shared_statistics") == "microbatch":
        fixed.add("train.microbatches")  # with which the numbers change
    for name in sorted(old.keys() | new.keys()):
        before, now = old.get(name, "absent"), new.get(name, "absent")
        grows = name in growing and "absent" not in (before, now) and now > before
        if before == now or grows or (_MAY_CHANGE.fullmatch(name) and name not in fixed):
            continue
        may = "may only grow" if name in growing else "cannot change"
        raise UserError(
            f"config.{name} {may} in a run that has begun: it has {before!r}, now {now!r}; "
            "set it back, use another --workdir, or delete this one"
        )


def versions() -> dict[str, str]:
    """Returns the versions of Python, of this package and of what it computes with."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    from drifting_jax import __version__

    return {**found, "drifting_jax": __version__}


def _plain(value: Any) -> Any:
    """Plain dicts and tuples, references followed."""
    if isinstance(value, ConfigDict):
        value = value.copy_and_resolve_references().to_dict()
    if isinstance(value, Mapping):
        return {name: _plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_plain(entry) for entry in value)
    return value


def flat(values: Mapping[str, Any] | ConfigDict, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}; an empty section vanishes."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping | ConfigDict):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def _like(value: Any, default: Any) -> Any:
    """The value with ints turned to floats wherever the default holds a float."""
    if isinstance(default, Mapping):
        return {name: _like(value[name], default[name]) for name in default}
    if isinstance(default, tuple) and default:
        return tuple(_like(entry, default[0]) for entry in value)
    return float(value) if isinstance(default, float) else value


def _prefixes(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts))]


def _listed(names: Sequence[str] | Mapping[str, Any]) -> str:
    return ", ".join(repr(name) for name in names)
