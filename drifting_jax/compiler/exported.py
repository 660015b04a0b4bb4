"""Programs as bytes that other processes run with JAX alone (`jax.export`)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.export

from drifting_jax.errors import UserError

PLATFORMS = ("cpu", "cuda", "tpu")


def exported(function: Callable[..., Any], *arguments: Any) -> tuple[bytes, tuple[Any, ...]]:
    """Returns a function as bytes, for one device of any of `PLATFORMS`, and its outputs' shapes.

    Args:
      function: of arrays.
      arguments: trees of `jax.ShapeDtypeStruct`.

    Raises:
      UserError: the package flatbuffers is missing.
    """
    found = jax.export.export(jax.jit(function), platforms=PLATFORMS)(*arguments)
    try:
        return bytes(found.serialize()), found.out_avals
    except ImportError as error:
        raise UserError(f"{error}: pip install -e '.[export]'") from None
