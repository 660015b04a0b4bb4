"""Tasks that have a folder of their own, which lies above this one.

They are looked up by name when a run, a dry run or a command begins. The module of a task has two
functions, and two more if its networks can leave their workdir:

* `train(config, workdir=…, context=…)` returns whether it came to the end.
* `program(config, mesh)` assembles the step.
* `export(name, out, ema_decay=…, step=…)` writes a folder that needs JAX alone.
* `write_for_hub(name, out, ema_decay=…, license_name=…)` writes a folder for the Hugging Face Hub.

The last two take a workdir or a folder for the Hub, and return a line for a person.
"""

import importlib
from types import ModuleType
from typing import NamedTuple

from drifting_jax.errors import UserError
from drifting_jax.files import read_json
from drifting_jax.weights import files


class _Task(NamedTuple):
    """The name of its module, and how its runs are measured, for messages."""

    module: str
    measured: str


_TASKS = {
    "policy": _Task("drifting_jax.policy.task", "python -m drifting_jax.rollout measures it"),
    "pairs": _Task(
        "drifting_jax.pairs.task", "its training has measured it, see evaluation.json there"
    ),
}
_LEAVING = {"export": "exported", "write_for_hub": "written for the Hub"}


def find_task(name: str) -> ModuleType | None:
    """Returns the module of a task, or None for one of this folder."""
    return importlib.import_module(_TASKS[name].module) if name in _TASKS else None


def module_of(name: str, function: str) -> ModuleType | None:
    """Returns the module of the task whose workdir or folder for the Hub this is, or None.

    Args:
      name: a path, or hf://owner/repo.
      function: that the module has to have, of `_LEAVING`.

    Raises:
      UserError: it cannot be fetched from the Hub, or its task has no such function.
    """
    folder = files.fetch(name)
    try:
        record = read_json(folder / "config.json")
    except (OSError, UserError):  # what reads the folder says more
        return None
    config = record.get("config")
    task = config.get("task") if isinstance(config, dict) else record.get("network")
    module = find_task(task) if isinstance(task, str) else None
    if module is not None and not hasattr(module, function):
        raise UserError(
            f"{name} is of task {task!r}, whose networks cannot be {_LEAVING[function]}"
        )
    return module


def hint_of(task: str) -> str:
    """Returns the end of a message that refuses a run of a task; empty for one of this folder."""
    return f": {_TASKS[task].measured}" if task in _TASKS else ""
