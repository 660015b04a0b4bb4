"""Names that differ between the versions of JAX in `setup.py`; no other file checks a version."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.experimental

_jax: Any = jax  # the types of one version lack the names of another

# Context manager that switches 64 bits on or off. JAX 0.7 has it under `jax.experimental` alone.
enable_x64 = _jax.enable_x64 if hasattr(jax, "enable_x64") else _jax.experimental.enable_x64

# Settings of `surroundings.JAX_SETTINGS` that JAX 0.7 lacks.
NEWER_SETTINGS = {"jax_thread_guard"}


# Whether programs for a CPU can leave results in its "host" memory, which is the same memory. JAX
# 0.7 cannot; 0.10 can, and versions between were not tried.
CPU_HAS_HOST_MEMORY = jax.__version_info__ >= (0, 10)


def as_varying(x: jax.Array, axes: str | tuple[str, ...]) -> jax.Array:
    """x, with a type that says that it may differ along these axes of the mesh, in `shard_map`."""
    if hasattr(jax.lax, "pcast"):
        return _jax.lax.pcast(x, axes, to="varying")
    return _jax.lax.pvary(x, axes)  # the name in JAX 0.7


def scan_inputs(parameters: Mapping[str, Any], inputs: list[Any]) -> tuple[list[Any], ...]:
    """The constants, the carry and what is scanned over, of the inputs of a `scan` in a jaxpr."""
    if "ft_in" in parameters:  # from JAX 0.12 on
        return tuple(list(part) for part in parameters["ft_in"].update(inputs).unpack())
    consts = parameters["num_consts"]
    xs = consts + parameters["num_carry"]
    return inputs[:consts], inputs[consts:xs], inputs[xs:]
