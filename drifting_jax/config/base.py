"""Configs: the defaults of each task, their checks, and the copy that a workdir keeps.

A config is an `ml_collections.ConfigDict` with the fields of `defaults.py`. A config file is a
plain `get_config()` that starts from `base_config(task)` and changes fields; the command line
changes them with `--config.section.field=value`. Mistakes are `UserError`s of one line that name
the field.
"""

import importlib.metadata
import importlib.util
import json
import os
import platform
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_collections

from drifting_jax.config import checks
from drifting_jax.config.checks import flat
from drifting_jax.config.defaults import DEFAULTS
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
    """Returns the default config of a task; a field it lacks cannot be set.

    Args:
      task: "generator", "encoder" or "toy".

    Raises:
      UserError: There is no such task.
    """
    _check_task(task)
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
    _check_task(task)
    checks.check_fields(values, DEFAULTS[task])


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


def _like(value: Any, default: Any) -> Any:
    """The value with ints turned to floats wherever the default holds a float."""
    if isinstance(default, Mapping):
        return {name: _like(value[name], default[name]) for name in default}
    if isinstance(default, tuple) and default:
        return tuple(_like(entry, default[0]) for entry in value)
    return float(value) if isinstance(default, float) else value


def _check_task(task: Any) -> None:
    if not isinstance(task, str) or task not in DEFAULTS:
        known = checks.listed(DEFAULTS)
        raise UserError(f"config.task must be one of {known}; found {task!r}")
