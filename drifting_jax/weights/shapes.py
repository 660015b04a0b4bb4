"""Sizes of any network of the package, and the shapes of its parameters."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from drifting_jax.config.streams import root_key
from drifting_jax.errors import UserError
from drifting_jax.models import generators
from drifting_jax.models.calls import init_params

PyTree = Any


_REPEATS = (
    "depth",
    "depths",
    "blocks",
    "layers_per_block",
    "blocks_per_level",
)  # fields that say how many layers
_FEW = 64  # layers that are described in any case, so that missing tensors can be named
_LARGEST = 2**20  # of any size of a network


def param_shapes(
    model: nn.Module, *, tensors: int | None = None, inputs: Sequence[jax.ShapeDtypeStruct] = ()
) -> PyTree:
    """Tree of `jax.ShapeDtypeStruct`s of a network's parameters; nothing is computed.

    Args:
      model: a generator, or a network with the method `example_inputs`.
      tensors: how many tensors a file has for the network. With wrong sizes it could have so many
        layers that it would take for ever to describe them. None where the sizes are known.
      inputs: of a network without that method.

    Raises:
      ValueError: the network has many more layers than there are tensors, or a size above 2**20.
    """
    if tensors is not None:
        _check_sizes(model, tensors)
    key = root_key(0)
    if generators.is_generator(model):
        return jax.eval_shape(functools.partial(generators.init_generator, model=model), key)
    return jax.eval_shape(
        functools.partial(init_params, model), key, *(inputs or model.example_inputs())
    )


def check_fields(model: nn.Module, step: Any, origin: Path) -> None:
    """Checks that the sizes of a network are numbers: with a wrong one it may still give an output.

    Args:
      model: the network.
      step: of its training.
      origin: what it was read from.

    Raises:
      UserError: a size or the step is no number that fits.
    """
    for field in dataclasses.fields(model):
        value = getattr(model, field.name)
        if field.type in (int, "int"):
            numbers: tuple[type[int | float | np.integer], ...] = (int, np.integer)
        elif field.type in (float, "float"):
            numbers = (int, float)
        else:
            continue
        bad = isinstance(value, bool) or not isinstance(value, numbers) or not np.isfinite(value)
        if bad or value < 0 or (field.name == "scaling_factor" and value == 0):
            raise UserError(f"{origin}: {field.name} must be a number that fits; found {value!r}")
    if isinstance(step, bool) or not isinstance(step, int):
        raise UserError(f"{origin}: step must be a whole number; found {step!r}")


def _check_sizes(model: nn.Module, tensors: int) -> None:
    stacked = getattr(model, "scan", False)  # one tensor for all layers
    for field in dataclasses.fields(model):
        value = getattr(model, field.name)
        if isinstance(value, nn.Module) and field.name != "parent":
            _check_sizes(value, tensors)
        sizes = [n for n in (value if isinstance(value, tuple) else (value,)) if type(n) is int]
        if any(n > _LARGEST for n in sizes):
            raise ValueError(f"a network of {field.name}={value!r:.60} is too large to be built")
        if field.name in _REPEATS and sum(sizes) > max(tensors, _FEW) and not stacked:
            raise ValueError(
                f"{field.name}={value!r:.60} means more layers than the file has tensors, {tensors}"
            )
