"""Reads and writes generators and masked autoencoders in the format of the paper's release.

An artifact is a directory, or its folder `params_ema`, with `metadata.json` (kind, architecture,
step, decay of the average) and `ema_params.msgpack` (flax's msgpack of the parameters).
"""

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import flax.serialization
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from drifting_jax.errors import UserError
from drifting_jax.files import read_json
from drifting_jax.models.dit import DiT
from drifting_jax.models.resnet_mae import ResNetMAE
from drifting_jax.weights import release_autoencoder, release_generator

PyTree = Any

_PARAMS, _METADATA, _FOLDER = "ema_params.msgpack", "metadata.json", "params_ema"


@dataclasses.dataclass(frozen=True)
class _Format:
    """How the release stores one kind of network.

    Attributes:
      module: its class.
      from_config: `model_config` of the metadata -> the module. Raises KeyError for a missing size.
      to_config: the inverse. Raises UserError for an architecture that the format cannot hold.
      from_tensors: (module, {release's path: array}, origin) -> our parameters.
      to_tensors: (module, our parameters) -> {release's path: array}.
    """

    module: type[nn.Module]
    from_config: Callable[[Mapping[str, Any]], nn.Module]
    to_config: Callable[[Any], dict[str, Any]]
    from_tensors: Callable[..., PyTree]
    to_tensors: Callable[[Any, PyTree], dict[str, np.ndarray]]


_FORMATS = {  # by the kind in metadata.json
    "gen": _Format(
        DiT,
        release_generator.from_config,
        release_generator.to_config,
        release_generator.from_tensors,
        release_generator.to_tensors,
    ),
    "mae": _Format(
        ResNetMAE,
        release_autoencoder.from_config,
        release_autoencoder.to_config,
        release_autoencoder.from_tensors,
        release_autoencoder.to_tensors,
    ),
}


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A network as published.

    Attributes:
      model: `DiT` or `ResNetMAE`, with the architecture, dtypes and remat of the metadata.
      params: its parameters, NumPy float32.
      metadata: the whole of metadata.json: "kind", "step", "ema_decay", "model_config", ...
    """

    model: nn.Module
    params: PyTree
    metadata: Mapping[str, Any]


def is_artifact(path: Path) -> bool:
    """Whether a directory, or its folder `params_ema`, holds an artifact."""
    return any((folder / _METADATA).is_file() for folder in (path, path / _FOLDER))


def has_format(model: nn.Module) -> bool:
    """Whether the release has a format for the class of a network."""
    return any(type(model) is format_.module for format_ in _FORMATS.values())


def read_artifact(path: str | os.PathLike) -> Artifact:
    """Reads an artifact, the architecture included.

    Raises:
      UserError: files are missing or unreadable, or a tensor is missing, extra or of another shape.
    """
    path = Path(path)
    folder = path / _FOLDER if (path / _FOLDER / _METADATA).is_file() else path
    for name in (_METADATA, _PARAMS):
        if not (folder / name).is_file():
            raise UserError(
                f"{path} is no released artifact: {name} is neither there nor in {_FOLDER}/"
            )
    metadata = _read_metadata(folder / _METADATA)
    model = model_of(metadata, origin=str(folder / _METADATA))
    try:
        tree = flax.serialization.msgpack_restore((folder / _PARAMS).read_bytes())
        tensors = {name: np.asarray(x) for name, x in flatten_dict(tree, sep="/").items()}
    except Exception as error:  # msgpack and flax raise many kinds for damaged bytes
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"{folder / _PARAMS} cannot be read as flax's msgpack ({reason}): download it again"
        ) from None
    from_tensors = _FORMATS[metadata["kind"]].from_tensors
    return Artifact(model, from_tensors(model, tensors, origin=str(folder / _PARAMS)), metadata)


def write_artifact(
    path: str | os.PathLike,
    model: nn.Module,
    params: PyTree,
    *,
    step: int,
    ema_decay: float,
) -> Path:
    """Writes `<path>/params_ema` in the release's format.

    Args:
      path: directory, made if it is not there.
      model: a network for which `has_format` holds.
      params: its parameters, float32.
      step: training steps behind them.
      ema_decay: decay of the moving average that they are.

    Returns:
      The folder `params_ema`.

    Raises:
      UserError: the format cannot hold the architecture.
    """
    kind, format_ = next(item for item in _FORMATS.items() if type(model) is item[1].module)
    metadata = {
        "format": "flax.msgpack",
        "kind": kind,
        "backend": "jax",
        "ema_decay": ema_decay,
        "step": step,
        "path": f"{_FOLDER}/{_PARAMS}",
        "model_config": format_.to_config(model),
    }
    tree = unflatten_dict(format_.to_tensors(model, params), sep="/")
    folder = Path(path) / _FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in (
        (_PARAMS, flax.serialization.msgpack_serialize(tree)),
        (_METADATA, (json.dumps(metadata, indent=2) + "\n").encode()),
    ):
        partial = folder / f"{name}.partial"
        partial.write_bytes(data)
        os.replace(partial, folder / name)
    return folder


def model_of(metadata: Mapping[str, Any], *, origin: str = _METADATA) -> nn.Module:
    """The network that a metadata.json describes.

    Raises:
      UserError: the kind is not "gen" or "mae", or a size is missing.
    """
    kind, config = metadata.get("kind"), metadata.get("model_config")
    if kind not in _FORMATS or not isinstance(config, Mapping):
        raise UserError(
            f"{origin}: the kind must be 'gen' or 'mae', with a model_config; found {kind!r}"
        )
    try:
        return _FORMATS[kind].from_config(config)
    except KeyError as error:
        raise UserError(f"{origin}: model_config lacks {error}") from None


def _read_metadata(path: Path) -> dict[str, Any]:
    return read_json(path)
