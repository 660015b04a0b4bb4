"""Our own folders of a network: network.json and params.npz, or config.json and safetensors.

The second is the form for the Hugging Face Hub. Both hold the same parameters by the same names.
"""

import dataclasses
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from drifting_jax.errors import UserError, first_line
from drifting_jax.files import write_bytes, write_json
from drifting_jax.weights.files import read_tensors
from drifting_jax.weights.mapping import Tensor, assemble
from drifting_jax.weights.reading import read_json
from drifting_jax.weights.safetensors import write_safetensors
from drifting_jax.weights.shapes import param_shapes

PyTree = Any
T = TypeVar("T")

_NOT_THE_NETWORK = ("parent", "name", "attention_kernel")
_PLAIN = ("network.json", "params.npz")
_HUB = ("config.json", "model.safetensors")


def files_of(folder: Path) -> tuple[Path, Path] | None:
    """The description and the parameters of one of our folders; None if it is none.

    Raises:
      UserError: its config.json is damaged.
    """
    if (folder / _PLAIN[0]).is_file():
        return folder / _PLAIN[0], folder / _PLAIN[1]
    description, params = (folder / name for name in _HUB)
    if description.is_file() and {"network", "fields"} <= read_json(description).keys():
        return description, params
    return None


def read_as(
    network: str, folder: Path, weights_of: Callable[[dict[str, Any], Path, Path], T]
) -> T | None:
    """Returns what one of our folders holds; None if it is none of ours.

    Args:
      network: what its description must name.
      folder: a local one.
      weights_of: (description, its file, the file of parameters) -> what the folder holds. It may
        raise any error where they do not fit.

    Raises:
      UserError: it is damaged, or of another network.
    """
    files = files_of(folder)
    if files is None:
        return None
    record = read_json(files[0])
    if (found := record.get("network")) != network:
        raise UserError(
            f"{files[0]} describes a network of the kind {found!r:.100}; expected {network!r}"
        )
    try:
        return weights_of(record, *files)
    except UserError:
        raise
    except Exception as error:  # sizes that fit no network raise nearly anything
        raise UserError(f"{files[0]} describes no {network}: {first_line(error)}") from None


def write(folder: Path, record: Mapping[str, Any], params: PyTree, *, for_hub: bool) -> None:
    """Writes a network's folder, which is made.

    Args:
      folder: of the network.
      record: its description, which JSON can hold.
      params: its parameters.
      for_hub: as config.json and model.safetensors.
    """
    folder.mkdir(parents=True, exist_ok=True)
    arrays = flatten_dict(jax.tree.map(np.asarray, params), sep="/")
    if for_hub:
        write_safetensors(folder / _HUB[1], arrays)
    else:
        data = io.BytesIO()
        np.savez(data, **arrays)
        write_bytes(folder / _PLAIN[1], data.getvalue())
    write_json(folder / (_HUB if for_hub else _PLAIN)[0], record)


def module_fields(model: nn.Module) -> dict[str, Any]:
    """Returns the fields of a module by name, without those of every module or of a device."""
    names = [field.name for field in dataclasses.fields(model)]
    return {name: getattr(model, name) for name in names if name not in _NOT_THE_NETWORK}


def fields_record(model: nn.Module) -> dict[str, Any]:
    """Returns the fields of a module as JSON holds them."""
    return {name: to_json(name, value) for name, value in module_fields(model).items()}


def read_params(
    model: nn.Module, path: Path, *, inputs: Sequence[jax.ShapeDtypeStruct] = ()
) -> PyTree:
    """Returns the parameters of a network in a file with the same names.

    Args:
      model, inputs: as of `param_shapes`.
      path: of the file.

    Raises:
      UserError: it is no file of tensors, or they do not fit the network.
      ValueError: the network has many more layers than the file has tensors.
    """
    tensors = read_tensors(path)
    template = param_shapes(model, tensors=len(tensors), inputs=inputs)
    table = {name: Tensor(name) for name in flatten_dict(template, sep="/")}
    return assemble(template, table, tensors, origin=str(path))


def to_json(name: str, value: Any) -> Any:
    """The value of a module's field as JSON holds it."""
    return jnp.dtype(value).name if name.endswith("dtype") and value is not None else value


def from_json(name: str, value: Any) -> Any:
    """The inverse of `to_json`. Raises TypeError if the value is no dtype but should be."""
    if name.endswith("dtype") and value is not None:
        return jnp.dtype(value)
    return tuple(value) if isinstance(value, list) else value


def facts_of(record: Mapping[str, Any], origin: Path) -> dict[str, Any]:
    """What a description says besides kind and fields: other attributes of a `Network`.

    Args:
      record: the description.
      origin: its file.

    Raises:
      UserError: class_names are no list of a name for each class, or alpha_range is no two numbers.
    """
    names, alpha = record.get("class_names", []), record.get("alpha_range")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{origin}: class_names must be a list of names; found {names!r:.100}")
    classes = record["fields"].get("num_classes")
    if names and len(names) != classes:
        raise UserError(f"{origin}: expected {classes} class_names; found {len(names)}")
    if alpha is not None and not _is_range(alpha):
        raise UserError(f"{origin}: alpha_range must be two numbers above 0; found {alpha!r:.100}")
    return {
        "step": record.get("step", 0),
        "ema_decay": record.get("ema_decay", 0.0),
        "class_names": tuple(names),
        "alpha_range": tuple(alpha) if alpha else None,
    }


def _is_range(value: Any) -> bool:
    numbers = isinstance(value, list) and all(type(x) in (int, float) for x in value)
    return numbers and len(value) == 2 and 0 < value[0] <= value[1] < float("inf")
