"""Tasks that have a folder of their own, which lies above this one.

They are looked up by name when a run or a dry run begins. The module of a task has two functions:
`train(config, workdir=…, context=…)`, which returns whether it came to the end, and
`program(config, mesh)`, which assembles the step.
"""

import importlib
from types import ModuleType

_MODULES = {
    "policy": "drifting_jax.policy.training",
    "pairs": "drifting_jax.pairs.training",
}


def find_task(name: str) -> ModuleType | None:
    """Returns the module of a task, or None for one of this folder."""
    return importlib.import_module(_MODULES[name]) if name in _MODULES else None
