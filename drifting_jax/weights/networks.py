"""Networks from whatever folder or file holds them, and a plain format of our own."""

import dataclasses
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from drifting_jax.errors import UserError
from drifting_jax.files import write_bytes, write_json
from drifting_jax.models.convnext import ConvNeXtV2
from drifting_jax.models.dinov2 import DINOv2
from drifting_jax.models.dit import DiT
from drifting_jax.models.inception import InceptionV3
from drifting_jax.models.resnet import ResNet
from drifting_jax.models.resnet_mae import ResNetMAE
from drifting_jax.models.vae import VAE
from drifting_jax.weights import convnext, dinov2, files, inception, release, resnet, vae
from drifting_jax.weights.mapping import Tensor, assemble
from drifting_jax.weights.reading import read_json
from drifting_jax.weights.shapes import param_shapes

PyTree = Any

KINDS: dict[str, type[nn.Module]] = {
    "generator": DiT,
    "autoencoder": ResNetMAE,
    "convnext": ConvNeXtV2,
    "resnet": ResNet,
    "dinov2": DINOv2,
    "vae": VAE,
    "inception": InceptionV3,
}
_DESCRIPTION, _PARAMS = "network.json", "params.npz"
# By the entry of a config.json that says what it describes.
_BY_CONFIG = {"AutoencoderKL": "vae", "convnextv2": "convnext", "dinov2": "dinov2"}
# By a tensor that only this network has, where there is no config.json.
_BY_TENSOR = {
    "layer4.0.conv3.weight": "resnet",
    "blocks.0.ls1.gamma": "dinov2",
    "encoder.layer.0.layer_scale1.lambda1": "dinov2",
    "decoder.mid_block.resnets.0.conv1.weight": "vae",
    "Mixed_7c.branch3x3dbl_3b.conv.weight": "inception",
}


@dataclasses.dataclass(frozen=True)
class Network:
    """A network with its weights.

    Attributes:
      kind: a key of `KINDS`.
      model: the module.
      variables: {"params": …}, what `model.apply` takes; NumPy float32.
      step: training steps behind it, ema_decay: of the average it is; 0 where nothing is known.
    """

    kind: str
    model: nn.Module
    variables: PyTree
    step: int = 0
    ema_decay: float = 0.0


def load_network(name: str | Path, *, kind: str = "") -> Network:
    """Reads a network, its sizes included.

    Args:
      name: a folder or file: ours (`save_network`), an artifact of the paper's release, a folder of
        diffusers or transformers, a file of torchvision's or torch.hub's tensors; or
        hf://owner/repo.
      kind: a key of `KINDS`, where neither a config nor the tensors' names tell it.

    Raises:
      UserError: nothing is there, it is not recognised, or a tensor is missing, extra or of another
        shape.
    """
    if kind and kind not in KINDS:
        raise UserError(f"the kind of a network is one of {', '.join(KINDS)}; found {kind!r}")
    path = files.fetch(name)
    try:
        found = _read(path, kind)
    except UserError:
        raise
    # Sizes that fit no network make its module, or the arithmetic before it, raise nearly anything.
    except (ValueError, TypeError, ArithmeticError, LookupError, AttributeError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"{path} describes no network that can be built: {reason}") from error
    if kind and found.kind != kind:
        raise UserError(f"{path} holds a network of the kind {found.kind!r}; expected {kind!r}")
    _check_fields(found, path)
    return found


def _read(path: Path, kind: str) -> Network:
    if release.is_artifact(path):
        return _from_artifact(path)
    if (path / _DESCRIPTION).is_file():
        return _from_ours(path)
    beside = path.parent
    if path.is_file() and (release.is_artifact(beside) or (beside / _DESCRIPTION).is_file()):
        raise UserError(f"{path} is a part of the network in {beside}: give that folder")
    return _from_others(path, kind)


def _check_fields(network: Network, path: Path) -> None:
    """Makes sure that the sizes are numbers, since a wrong one may still give an output."""
    for field in dataclasses.fields(network.model):
        value = getattr(network.model, field.name)
        numbers = {"int": (int, np.integer), "float": (int, float)}.get(str(field.type))
        if field.type in (int, float):
            numbers = (int, float) if field.type is float else (int, np.integer)
        if numbers is None:
            continue
        bad = isinstance(value, bool) or not isinstance(value, numbers) or not np.isfinite(value)
        if bad or value < 0 or (field.name == "scaling_factor" and value == 0):
            raise UserError(f"{path}: {field.name} must be a number that fits; found {value!r}")
    if isinstance(network.step, bool) or not isinstance(network.step, int):
        raise UserError(f"{path}: step must be a whole number; found {network.step!r}")


def save_network(path: str | Path, network: Network) -> None:
    """Writes a folder that `load_network` reads: network.json and params.npz."""
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    data = io.BytesIO()
    np.savez(data, **flatten_dict(jax.tree.map(np.asarray, network.variables["params"]), sep="/"))
    write_bytes(folder / _PARAMS, data.getvalue())
    fields = {
        f.name: _plain(f.name, getattr(network.model, f.name))
        for f in dataclasses.fields(network.model)
        if f.name not in ("parent", "name")
    }
    record = {"network": network.kind, "fields": fields}
    write_json(
        folder / _DESCRIPTION, record | {"step": network.step, "ema_decay": network.ema_decay}
    )


def _plain(name: str, value: Any) -> Any:
    return jnp.dtype(value).name if name.endswith("dtype") and value is not None else value


def _from_ours(path: Path) -> Network:
    record = read_json(path / _DESCRIPTION)
    try:
        fields = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in record["fields"].items()
        }
        for name in fields:
            if name.endswith("dtype") and fields[name] is not None:
                fields[name] = jnp.dtype(fields[name])
        model = KINDS[record["network"]](**fields)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path / _DESCRIPTION} describes no network: {error!r}") from None
    kind, params = record["network"], path / _PARAMS
    template = param_shapes(model)
    table = {name: Tensor(name) for name in flatten_dict(template, sep="/")}
    found = assemble(template, table, files.read_tensors(params), origin=str(params))
    step, decay = record.get("step", 0), record.get("ema_decay", 0.0)
    return Network(kind, model, {"params": found}, step, decay)


def _from_artifact(path: Path) -> Network:
    artifact = release.read_artifact(path)
    kind = "generator" if isinstance(artifact.model, DiT) else "autoencoder"
    step, decay = (artifact.metadata.get(name, 0) for name in ("step", "ema_decay"))
    return Network(kind, artifact.model, {"params": artifact.params}, step, decay)


def _from_others(path: Path, kind: str) -> Network:
    file, config = files.find_weights(path), files.read_config(path)
    tensors = files.read_tensors(file)
    kind = kind or _recognise(path, tensors, config)
    loaders: dict[str, Callable[..., tuple[nn.Module, PyTree]]] = {
        "convnext": lambda t, c, origin: convnext.load(t, c or {}, origin=origin),
        "resnet": lambda t, c, origin: resnet.load(t, origin=origin),
        "dinov2": lambda t, c, origin: dinov2.load(t, c, origin=origin),
        "vae": lambda t, c, origin: vae.load(t, c, origin=origin),
        "inception": lambda t, c, origin: inception.load(t, origin=origin),
    }
    if kind not in loaders:
        raise UserError(
            f"{path} holds no {kind} of ours (network.json) and none of the paper's release "
            "(metadata.json)"
        )
    if kind != "resnet":  # which finds its own prefix
        tensors = files.select(tensors)
    try:
        return Network(kind, *loaders[kind](tensors, config, origin=str(file)))
    except UserError as error:
        if config is None and kind not in ("resnet", "inception"):
            hint = "there is no config.json beside it, so the usual sizes were expected"
            raise UserError(f"{error} ({hint})") from None
        raise


def _recognise(
    path: Path, tensors: Mapping[str, np.ndarray], config: Mapping[str, Any] | None
) -> str:
    for entry in ("_class_name", "model_type"):
        if config and str(config.get(entry)) in _BY_CONFIG:
            return _BY_CONFIG[str(config[entry])]
    for name, kind in _BY_TENSOR.items():
        if any(found == name or found.endswith(("." + name, "/" + name)) for found in tensors):
            return kind
    raise UserError(
        f"{path} holds no network that is known here ({len(tensors)} tensors, the first "
        f"{min(tensors, default='none')}): say what it is with --kind, one of {', '.join(KINDS)}"
    )
