"""Converts tensors of other libraries into our parameter trees and back, by a table of names."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from drifting_jax.errors import UserError

PyTree = Any

# From the foreign array to ours, and back.
_LAYOUTS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], ...]] = {
    "same": (lambda x: x, lambda x: x),
    "linear": (np.transpose, np.transpose),  # [out, in] and [in, out]
    "conv": (  # [out, in, h, w] and [h, w, in, out]
        lambda x: x.transpose(2, 3, 1, 0),
        lambda x: x.transpose(3, 2, 0, 1),
    ),
}
_RANKS = {"linear": 2, "conv": 4}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """The tensor in a foreign file that one of our arrays comes from.

    Attributes:
      name: the tensor's name there.
      layout: "same"; "linear": [out, in] there and [in, out] here; or "conv": [out, in, h, w]
        there and [h, w, in, out] here.
    """

    name: str
    layout: str = "same"


def assemble(
    template: PyTree,
    table: Mapping[str, Tensor],
    tensors: Mapping[str, np.ndarray],
    *,
    ignored: Sequence[str] = (),
    origin: str = "the file",
) -> PyTree:
    """Fills a tree of parameters with foreign tensors.

    Args:
      template: tree of arrays or of their shapes (`param_shapes`).
      table: {"path/of/our/array": Tensor}, one entry for each array of the template.
      tensors: the foreign tensors by name.
      ignored: regular expressions of foreign names that are not needed.
      origin: what to call the file in an error.

    Returns:
      A tree like the template, of NumPy arrays with its shapes and dtypes.

    Raises:
      UserError: a tensor is missing, has another shape, holds values that are not finite, or is
        left over; the message names it.
    """
    wanted = flatten_dict(template, sep="/")
    assert set(wanted) == set(table), sorted(set(wanted) ^ set(table))
    missing = sorted(entry.name for entry in table.values() if entry.name not in tensors)
    if missing:
        raise UserError(f"{origin} lacks {_some(missing)}")
    used = {entry.name for entry in table.values()}
    extra = sorted(
        name
        for name in tensors
        if name not in used and not any(re.fullmatch(pattern, name) for pattern in ignored)
    )
    if extra:
        raise UserError(f"{origin} holds {_some(extra)}, which this network has no place for")
    arrays = {}
    for path, entry in table.items():
        found = np.asarray(tensors[entry.name])
        if not jnp.issubdtype(found.dtype, jnp.floating):
            raise UserError(
                f"{entry.name} of {origin} is of {found.dtype}; expected floating-point numbers"
            )
        rank = _RANKS.get(entry.layout, found.ndim)
        array = _LAYOUTS[entry.layout][0](found) if found.ndim == rank else found
        if found.ndim != rank or array.shape != wanted[path].shape:
            raise UserError(
                f"{entry.name} of {origin} has the shape {found.shape}, which does not give "
                f"{path} {tuple(wanted[path].shape)}"
            )
        with np.errstate(over="ignore"):
            arrays[path] = array.astype(wanted[path].dtype, copy=False)
        if not np.isfinite(arrays[path]).all():
            raise UserError(f"{entry.name} of {origin} holds values that are not finite")
    return unflatten_dict(arrays, sep="/")


def disassemble(params: PyTree, table: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """The foreign tensors of a tree: the inverse of `assemble`."""
    arrays = flatten_dict(params, sep="/")
    assert set(arrays) == set(table), sorted(set(arrays) ^ set(table))
    return {
        entry.name: _LAYOUTS[entry.layout][1](np.asarray(arrays[path]))
        for path, entry in table.items()
    }


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
