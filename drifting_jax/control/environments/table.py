"""The table of environments, by the names that commands take."""

from collections.abc import Callable

from drifting_jax.control.environments.environment import Environment
from drifting_jax.control.environments.meta_world import MetaWorld
from drifting_jax.control.environments.push_t import PushT
from drifting_jax.control.environments.two_ways import TwoWays
from drifting_jax.errors import UserError

# {name: what makes it}; of "family:task" the family, whose maker takes the task.
ENVIRONMENTS: dict[str, Callable[[], Environment]] = {"two_ways": TwoWays, "push_t": PushT}
FAMILIES: dict[str, Callable[[str], Environment]] = {"metaworld": MetaWorld}


def open_environment(name: str) -> Environment:
    """Returns a new environment.

    Args:
      name: "two_ways", "push_t", or "metaworld:" and a task such as "reach-v3".

    Raises:
      UserError: there is none of this name, or its package is missing.
    """
    family, colon, task = name.partition(":")
    if colon and family in FAMILIES:
        return FAMILIES[family](task)
    if name in ENVIRONMENTS:
        return ENVIRONMENTS[name]()
    known = [*ENVIRONMENTS, *(f"{family}:TASK" for family in FAMILIES)]
    raise UserError(f"expected an environment, one of {', '.join(known)}; found {name!r}")
