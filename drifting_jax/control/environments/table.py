"""The table of environments, by the names that commands take, and environments of other files."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

from drifting_jax.control.environments.environment import Environment
from drifting_jax.control.environments.meta_world import MetaWorld
from drifting_jax.control.environments.push_t import PushT
from drifting_jax.control.environments.two_ways import TwoWays
from drifting_jax.digests import digest_file
from drifting_jax.errors import UserError, first_line

# {name: what makes it}; of "family:task" the family, whose maker takes the task.
ENVIRONMENTS: dict[str, Callable[[], Environment]] = {"two_ways": TwoWays, "push_t": PushT}
FAMILIES: dict[str, Callable[[str], Environment]] = {"metaworld": MetaWorld}

# What an environment of another file must have.
_MEMBERS = ("observation_size", "action_size", "max_steps", "steps_after_success", "reset", "step",
            "draw", "expert")  # fmt: skip


def open_environment(name: str) -> Environment:
    """Returns a new environment.

    Args:
      name: "two_ways", "push_t", "metaworld:" and a task such as "reach-v3", or a file of Python
        and a class in it, such as "my_env.py:MyEnvironment", which is made without arguments.

    Raises:
      UserError: there is none of this name, its package is missing, or the file has no such
        environment.
    """
    if (file := file_of(name)) is not None:
        return _from_file(file, name.rpartition(":")[2])
    family, colon, task = name.partition(":")
    if colon and family in FAMILIES:
        return FAMILIES[family](task)
    if name in ENVIRONMENTS:
        return ENVIRONMENTS[name]()
    known = [*ENVIRONMENTS, *(f"{family}:TASK" for family in FAMILIES), "FILE.py:CLASS"]
    raise UserError(f"expected an environment, one of {', '.join(known)}; found {name!r}")


def file_of(name: str) -> Path | None:
    """Returns the file of an environment that is named by its file and class; else None."""
    file, colon, _ = name.rpartition(":")
    return Path(file) if colon and file.endswith(".py") else None


def code_digest(name: str) -> str:
    """Returns digits that tell the file of an environment from others; "" for one of the tables."""
    file = file_of(name)
    return "" if file is None else digest_file(file)


def _from_file(file: Path, name: str) -> Environment:
    """An environment of a class in a file."""
    if not file.is_file():
        raise UserError(f"there is no file {file} of an environment")
    module_name = f"environment_of_{file.stem}"
    spec = importlib.util.spec_from_file_location(module_name, file)
    assert spec is not None and spec.loader is not None  # the name ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # where dataclasses look for it
    try:
        spec.loader.exec_module(module)
        made = vars(module)[name]() if isinstance(vars(module).get(name), type) else None
    except Exception as error:  # anything, of code that is not ours
        raise UserError(f"{file} fails: {first_line(error)}") from error
    if made is None:
        own = [n for n, x in vars(module).items() if getattr(x, "__module__", "") == module_name]
        raise UserError(f"{file} has no class {name!r}; it has {', '.join(own) or 'none'}")
    if missing := [member for member in _MEMBERS if not hasattr(made, member)]:
        raise UserError(f"{name} of {file} lacks {', '.join(missing)}")
    return made
