"""Shapes of the parameters of any network of the package."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax

from drifting_jax.config.streams import root_key
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


def param_shapes(model: nn.Module, *, tensors: int | None = None) -> PyTree:
    """Tree of `jax.ShapeDtypeStruct`s of a network's parameters; nothing is computed.

    Args:
      model: a generator, or a network with the method `example_inputs`.
      tensors: how many tensors a file has for the network. With wrong sizes it could have so many
        layers that it would take for ever to describe them. None where the sizes are known.

    Raises:
      ValueError: the network has many more layers than there are tensors, or a size above 2**20.
    """
    if tensors is not None:
        _check_sizes(model, tensors)
    key = root_key(0)
    if generators.is_generator(model):
        return jax.eval_shape(functools.partial(generators.init_generator, model=model), key)
    return jax.eval_shape(functools.partial(init_params, model), key, *model.example_inputs())


def _check_sizes(model: nn.Module, tensors: int) -> None:
    stacked = getattr(model, "scan", False)  # one tensor for all layers
    for field in dataclasses.fields(model):
        value = getattr(model, field.name)
        sizes = [n for n in (value if isinstance(value, tuple) else (value,)) if type(n) is int]
        if any(n > _LARGEST for n in sizes):
            raise ValueError(f"a network of {field.name}={value!r:.60} is too large to be built")
        if field.name in _REPEATS and sum(sizes) > max(tensors, _FEW) and not stacked:
            raise ValueError(
                f"{field.name}={value!r:.60} means more layers than the file has tensors, {tensors}"
            )
