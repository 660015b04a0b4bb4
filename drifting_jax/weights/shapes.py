"""Shapes of the parameters of any network of the package."""

import functools
from typing import Any

import flax.linen as nn
import jax

from drifting_jax.config.streams import root_key
from drifting_jax.models import generators

PyTree = Any


def param_shapes(model: nn.Module) -> PyTree:
    """Tree of `jax.ShapeDtypeStruct`s of a network's parameters; nothing is computed.

    Args:
      model: a generator, or a network with the method `example_inputs`.
    """
    key = root_key(0)
    if generators.is_generator(model):
        return jax.eval_shape(functools.partial(generators.init_generator, model=model), key)
    return jax.eval_shape(model.init, key, *model.example_inputs())["params"]
