"""The table of environments, by the names that commands take, and environments of other files."""

import contextlib
import functools
import sys
import traceback
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from drifting_jax.control.environments.environment import Environment
from drifting_jax.control.environments.meta_world import MetaWorld
from drifting_jax.control.environments.push_t import PushT
from drifting_jax.control.environments.two_ways import TwoWays
from drifting_jax.digests import digest_bytes
from drifting_jax.errors import UserError, first_line

# {name: what makes it}; of "family:task" the family, whose maker takes the task.
ENVIRONMENTS: dict[str, Callable[[], Environment]] = {"two_ways": TwoWays, "push_t": PushT}
FAMILIES: dict[str, Callable[[str], Environment]] = {"metaworld": MetaWorld}

# What an environment of another file must have.
_MEMBERS = ("observation_size", "action_size", "max_steps", "steps_after_success", "reset", "step",
            "draw", "expert")  # fmt: skip


class Maker(NamedTuple):
    """What makes the environments of a run.

    Attributes:
      make: returns a new environment.
      code: digits of the file that an environment of another file is in, as it was run; "" for one
        of the tables.
    """

    make: Callable[[], Environment]
    code: str = ""


def find_environment(name: str) -> Maker:
    """Returns what makes environments of a name. A file is read and run once.

    Args:
      name: "two_ways", "push_t", "metaworld:" and a task such as "reach-v3", or a file of Python
        and a class in it, such as "my_env.py:MyEnvironment", which is made without arguments.

    Raises:
      UserError: there is none of this name, or the file has no such class. `make` raises one if
        its package is missing, or if it is no environment.
    """
    file, colon, class_name = name.rpartition(":")
    if colon and file.endswith(".py"):
        return _of_file(Path(file), class_name)
    family, colon, task = name.partition(":")
    if colon and family in FAMILIES:
        return Maker(functools.partial(FAMILIES[family], task))
    if name in ENVIRONMENTS:
        return Maker(ENVIRONMENTS[name])
    known = [*ENVIRONMENTS, *(f"{family}:TASK" for family in FAMILIES), "FILE.py:CLASS"]
    raise UserError(f"expected an environment, one of {', '.join(known)}; found {name!r}")


def open_environment(name: str) -> Environment:
    """Returns a new environment. Raises UserError as `find_environment` and its `make`."""
    return find_environment(name).make()


def _of_file(file: Path, name: str) -> Maker:
    """Runs a file, and returns what makes environments of a class in it."""
    try:
        source = file.read_bytes()
    except FileNotFoundError:
        raise UserError(f"there is no file {file} of an environment") from None
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}") from None
    module = types.ModuleType(f"environment_of_{file.stem}")
    module.__file__ = str(file.absolute())
    sys.modules[module.__name__] = module  # where dataclasses look for it
    with _in_one_line(file):
        exec(compile(source, module.__file__, "exec", dont_inherit=True), vars(module))
    found = vars(module).get(name)
    if not isinstance(found, type):
        own = [n for n, x in vars(module).items() if _is_of(module, x)]
        raise UserError(f"{file} has no class {name!r}; it has {', '.join(own) or 'none'}")

    def make() -> Environment:
        with _in_one_line(file):
            made = found()
        if missing := [member for member in _MEMBERS if not hasattr(made, member)]:
            raise UserError(f"{name} of {file} lacks {', '.join(missing)}")
        return made

    return Maker(make, digest_bytes(source))


def _is_of(module: types.ModuleType, value: object) -> bool:
    return getattr(value, "__module__", "") == module.__name__


@contextlib.contextmanager
def _in_one_line(file: Path) -> Iterator[None]:
    """Context of code of a file, whose errors become a line with the place in the file."""
    try:
        yield
    except Exception as error:  # anything, of code that is not ours
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(file.absolute())]
        place = f" in line {lines[-1]}" if lines else ""  # a syntax error names its line itself
        raise UserError(f"{file} fails{place}: {first_line(error)}") from error
