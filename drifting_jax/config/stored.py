"""The config.json of a workdir: written, read, and compared when a run is resumed."""

import contextlib
import importlib.metadata
import os
import platform
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from drifting_jax.config.base import converted, fields, resolve
from drifting_jax.config.defaults import REMOVED
from drifting_jax.config.field import Field
from drifting_jax.config.values import flat, nested, plain
from drifting_jax.errors import UserError
from drifting_jax.files import read_json, write_json

_SHOWN = 5  # of other runs, in a message
_PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def save_config(workdir: str | os.PathLike, config: ConfigDict) -> None:
    """Writes <workdir>/config.json, atomically: the resolved config and the versions it ran with.

    Raises:
      UserError: As `validate`.
    """
    record = {"config": plain(resolve(config)), "versions": versions()}
    workdir = Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(workdir / "config.json", record)


def load_config(workdir: str | os.PathLike) -> ConfigDict:
    """Returns the config that a run of this or an older version wrote to <workdir>/config.json.

    A field that the file lacks has the value that the older version behaved by (`Field.absent`, or
    the default). Fields that were removed since are left out, with a warning. Values are not
    checked.

    Raises:
      UserError: The workdir holds no config, one that cannot be read, or one with fields that this
        version does not know.
    """
    path = Path(workdir) / "config.json"
    try:
        values = plain(read_json(path)["config"])
        task = values["task"]
    except FileNotFoundError:
        raise UserError(
            f"{workdir} holds no run: there is no {path}{_runs_beside(Path(workdir))}"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a config that a run wrote: {error!r}") from None
    return ConfigDict(nested(_completed(flat(values), task, path))).lock()


def _runs_beside(workdir: Path) -> str:
    """What a person may have meant: the runs in the same folder."""
    runs: list[str] = []
    with contextlib.suppress(OSError):
        folders = [path.parent for path in workdir.parent.glob("*/config.json")]
        runs = sorted(folder.name for folder in folders if (folder / "metrics.jsonl").is_file())
    more = ", …" * (len(runs) > _SHOWN)
    return f"; {workdir.parent} holds the runs {', '.join(runs[:_SHOWN])}{more}" if runs else ""


def values_to_keep(
    stored: ConfigDict, current: ConfigDict, *, given: Collection[str] = ()
) -> dict[str, Any]:
    """Returns the fields, by dotted names, in which a resumed run keeps the behaviour of old runs.

    A run that was begun before a field existed has the value `Field.absent`. Where today's default
    is another one, the run goes on with its own.

    Args:
      stored: of `load_config`.
      current: of `resolve`, for the same task.
      given: fields that the user has set, which are not touched.
    """
    if stored.task != current.task:
        return {}
    old, new = flat(plain(stored)), flat(plain(current))
    return {
        name: field.absent
        for name, field in fields(current.task).items()
        if field.absent is not None
        and name not in given
        and (old[name], new[name]) == (field.absent, field.default)
    }


def with_values(config: ConfigDict, values: Mapping[str, Any]) -> ConfigDict:
    """Returns a config with some of its fields, by dotted names, changed."""
    found = flat(plain(config)) | {name: plain(value) for name, value in values.items()}
    return ConfigDict(nested(found)).lock()


def check_resume(stored: ConfigDict, current: ConfigDict) -> None:
    """Checks that a run which began with `stored` may go on with `current`.

    `Field.on_resume` says what may differ: where the run works, what it prints and saves, and a
    number of steps that grows.

    Args:
      stored: of `load_config`.
      current: of `resolve`.

    Raises:
      UserError: Another field differs; the message has both values.
    """
    if stored.task != current.task:
        raise UserError(
            f"the workdir holds a run of task {stored.task!r}, this config is of task "
            f"{current.task!r}: use another --workdir"
        )
    old, new = flat(plain(stored)), flat(plain(current))
    for name, field in sorted(fields(current.task).items()):
        before, now, rule = old[name], new[name], field.on_resume
        if name == "train.microbatches" and old["train.shared_statistics"] == "microbatch":
            rule = "fixed"  # the loss depends on it then
        grows = rule == "may grow" and type(before) is type(now) and now > before
        if before == now or rule == "may change" or grows:
            continue
        may = "may only grow" if rule == "may grow" else "cannot change"
        raise UserError(
            f"config.{name} {may} in a run that has begun: it has {before!r}, now {now!r}; "
            "set it back, use another --workdir, or delete this one"
        )


def versions() -> dict[str, str]:
    """Returns the versions of Python, of this package and of the packages it computes with."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    from drifting_jax import __version__

    return {**found, "drifting_jax": __version__}


def _completed(values: Mapping[str, Any], task: str, path: Path) -> dict[str, Any]:
    """The stored values by dotted names, with all fields of the task and no others."""
    known = fields(task)
    unknown = [name for name in values if name not in known and name not in REMOVED]
    if unknown:
        raise UserError(
            f"{path} has fields that this version does not know: "
            f"{', '.join(f'config.{name}' for name in unknown)}; use the version that wrote it, "
            "which it names under 'versions'"
        )
    for name in (name for name in values if name not in known):
        logging.warning("%s: config.%s is ignored: %s", path, name, REMOVED[name])
    return {
        name: converted(values[name], field) if name in values else _before(field)
        for name, field in known.items()
    }


def _before(field: Field) -> Any:
    """The value of a field in runs that were begun before it existed."""
    return field.default if field.absent is None else field.absent
