"""The only calls of Flax's `init` and `apply`: networks as pure functions of their variables."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

PyTree = Any


def init_params(module: nn.Module, key: jax.Array, *inputs: Any) -> PyTree:
    """Initial parameters of a network for these inputs, float32."""
    return module.init(key, *inputs)["params"]


def apply(
    module: nn.Module, params: PyTree, *inputs: Any, method: str | Callable | None = None
) -> Any:
    """What a network, or one of its methods, returns for these parameters and inputs."""
    return apply_variables(module, {"params": params}, *inputs, method=method)


def apply_variables(
    module: nn.Module, variables: PyTree, *inputs: Any, method: str | Callable | None = None
) -> Any:
    """As `apply`, with all variables of the network, such as {"params": …, "batch_stats": …}."""
    named: dict[str, Any] = {} if method is None else {"method": method}
    return module.apply(variables, *inputs, **named)
