"""The check of `mesh.rules`: ordered pairs of a pattern and a spec."""

import re
from typing import Any

from drifting_jax.errors import UserError

_AXES = {"data", "fsdp"}


def check_sharding_rules(name: str, rules: tuple[Any, ...]) -> None:
    """Checks that each rule is (regex, spec), with each mesh axis at most once in a spec.

    Args:
      name: the field, for messages.
      rules: such as (("attention/.*kernel", (None, "fsdp")),).

    Raises:
      UserError: A rule has another form.
    """
    for rule in rules:
        pair = isinstance(rule, tuple) and len(rule) == 2 and isinstance(rule[1], tuple)
        if not pair or not isinstance(rule[0], str):
            raise UserError(
                f"config.{name} must hold pairs like ('attention/.*kernel', (None, 'fsdp')); "
                f"found {rule!r}"
            )
        entries = [entry if isinstance(entry, tuple) else (entry,) for entry in rule[1]]
        named = [axis for entry in entries for axis in entry if axis is not None]
        known = all(isinstance(axis, str) and axis in _AXES for axis in named)
        if not known or len(named) != len(set(named)):
            raise UserError(
                f"config.{name} may name the mesh axes 'data' and 'fsdp', each once in a rule; "
                f"found {rule!r}"
            )
        try:
            re.compile(rule[0])
        except (re.error, OverflowError, RecursionError) as error:
            raise UserError(f"config.{name} has the bad regex {rule[0]!r}: {error}") from None
