"""Configs: made from the defaults of a task, checked, and resolved.

A config is an `ml_collections.ConfigDict` with the fields of its task (`defaults.py`). A config
file is a plain `get_config()` that starts from `base_config(task)` and changes fields; the command
line changes them with `--config.section.field=value`.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from drifting_jax.config.checks import check_fields, listed
from drifting_jax.config.defaults import SECTIONS
from drifting_jax.config.field import Field, Section
from drifting_jax.config.values import flat, nested, plain
from drifting_jax.errors import UserError
from drifting_jax.files import expanded


def sections(task: str) -> tuple[Section, ...]:
    """Returns the sections of a task's config, with their fields.

    Args:
      task: a name of `SECTIONS`, such as "generator" or "toy".

    Raises:
      UserError: There is no such task.
    """
    if not isinstance(task, str) or task not in SECTIONS:
        raise UserError(f"config.task must be one of {listed(SECTIONS)}; found {task!r}")
    return SECTIONS[task]


def fields(task: str) -> dict[str, Field]:
    """Returns the fields of a task's config by dotted names, such as "train.num_steps".

    Args:
      task: a name of `SECTIONS`, such as "generator" or "toy".

    Raises:
      UserError: There is no such task.
    """
    return {name: field for part in sections(task) for name, field in part.dotted().items()}


def base_config(task: str) -> ConfigDict:
    """Returns the default config of a task; it has no other fields than the task's.

    Args:
      task: a name of `SECTIONS`, such as "generator" or "toy".

    Raises:
      UserError: There is no such task.
    """
    defaults = {name: field.default for name, field in fields(task).items()}
    return ConfigDict(nested(defaults)).lock()


def resolve(config: ConfigDict) -> ConfigDict:
    """Returns a locked copy: references followed, tuples for lists, floats where floats are due.

    A `~` in front of a path becomes the home folder.

    Raises:
      UserError: As `validate`.
    """
    validate(config)
    values = flat(plain(config))
    found = {name: converted(values[name], field) for name, field in fields(values["task"]).items()}
    return ConfigDict(nested(found)).lock()


def validate(config: ConfigDict | Mapping[str, Any]) -> None:
    """Checks every field of a config against its task's fields: names, types, values, relations.

    Raises:
      UserError: A field is unknown (the nearest is named), missing, of a wrong type or out of
        range, or two fields do not go together.
    """
    values = plain(config)
    check_fields(flat(values), fields(values.get("task")))


def converted(value: Any, field: Field) -> Any:
    """Returns a field's value: a float where one is due, and a path with its home folder.

    Raises:
      UserError: a path begins with `~` and there is no such home folder.
    """
    if field.is_path and isinstance(value, str):
        return expanded(value)
    if field.is_path and isinstance(value, tuple | list):
        return tuple(expanded(x) if isinstance(x, str) else x for x in value)
    return _with_floats(field.meant(value), field.default)


def _with_floats(value: Any, default: Any) -> Any:
    """The value, with ints turned to floats where the default is a float."""
    if isinstance(default, tuple) and default:
        return tuple(_with_floats(entry, default[0]) for entry in value)
    return float(value) if isinstance(default, float) else value
