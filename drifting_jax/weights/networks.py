"""The table of networks with published weights, and networks from any folder or file.

`load_network` reads the formats of others, the paper's release, and our own, which `save_network`
writes: a folder with kind, fields, step and parameters (`own_folders`).
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import flax.linen as nn
import numpy as np

from drifting_jax.errors import UserError
from drifting_jax.models import generators
from drifting_jax.models.convnext import ConvNeXtV2
from drifting_jax.models.dinov2 import DINOv2
from drifting_jax.models.inception import InceptionV3
from drifting_jax.models.resnet import ResNet
from drifting_jax.models.resnet_mae import ResNetMAE
from drifting_jax.models.vae import VAE
from drifting_jax.weights import (
    convnext,
    dinov2,
    dit,
    files,
    inception,
    own_folders,
    release,
    resnet,
    vae,
    wrappers,
)
from drifting_jax.weights.foreign_files import PIPELINE, describe_folder
from drifting_jax.weights.reading import read_json
from drifting_jax.weights.shapes import check_fields

PyTree = Any
Model = TypeVar("Model", bound=nn.Module, covariant=True)

_GENERATOR = "generator"


@dataclasses.dataclass(frozen=True)
class NetworkType:
    """What is known of a kind of network.

    Attributes:
      module: its class, with the method `example_inputs`.
      load: (tensors, config of config.json or None, origin) -> (module, variables), for the files
        that others publish; None where only our format and the release's hold such a network.
      takes_config: whether `load` takes a config; if so, it expects the usual sizes without one.
      takes_groups: whether `load` finds the network in a file of several groups of tensors itself,
        where no group with a known name holds it.
      config_name: `_class_name` or `model_type` of its config.json.
      tensor_names: tensors that it alone has, to recognise it where there is no config.json.
      folder: its folder in a pipeline of diffusers.
    """

    module: type[nn.Module]
    load: Callable[..., tuple[nn.Module, PyTree]] | None = None
    takes_config: bool = True
    takes_groups: bool = False
    config_name: str | None = None
    tensor_names: tuple[str, ...] = ()
    folder: str | None = None


# All networks but generators, which `models.generators.GENERATORS` lists.
NETWORKS: dict[str, NetworkType] = {
    "autoencoder": NetworkType(ResNetMAE),
    "convnext": NetworkType(
        ConvNeXtV2,
        convnext.load,
        config_name="convnextv2",
    ),
    "resnet": NetworkType(
        ResNet,
        resnet.load,
        takes_config=False,
        takes_groups=True,
        tensor_names=resnet.TENSOR_NAMES,
    ),
    "dinov2": NetworkType(
        DINOv2,
        dinov2.load,
        config_name="dinov2",
        tensor_names=dinov2.TENSOR_NAMES,
    ),
    "vae": NetworkType(
        VAE,
        vae.load,
        config_name="AutoencoderKL",
        tensor_names=vae.TENSOR_NAMES,
        folder="vae",
    ),
    "inception": NetworkType(
        InceptionV3,
        inception.load,
        takes_config=False,
        tensor_names=inception.TENSOR_NAMES,
    ),
}
KINDS = (_GENERATOR, *NETWORKS)


@dataclasses.dataclass(frozen=True)
class Network(Generic[Model]):
    """A network with its weights.

    Attributes:
      kind: one of `KINDS`.
      model: the module.
      variables: {"params": …}, what `model.apply` takes; NumPy float32.
      step: training steps behind the weights; 0 where that is not known.
      ema_decay: decay of the moving average that the weights are; 0 where that is not known.
      class_names: of a generator, in the order of the labels; empty where they are not known.
      alpha_range: of a generator, the smallest and the largest guidance scale of its training.
    """

    kind: str
    model: Model
    variables: PyTree
    step: int = 0
    ema_decay: float = 0.0
    class_names: tuple[str, ...] = ()
    alpha_range: tuple[float, float] | None = None


def kind_of(model: nn.Module) -> str:
    """Which of `KINDS` a module is."""
    if generators.is_generator(model):
        return _GENERATOR
    return next(kind for kind, network in NETWORKS.items() if type(model) is network.module)


def load_network(name: str | Path, *, kind: str = "") -> Network[nn.Module]:
    """Reads a network: its kind, its sizes and its weights.

    Args:
      name: a folder of ours (`save_network`), an artifact of the paper's release, a folder of
        diffusers or transformers, a file of torchvision's, torch.hub's or MoCo's tensors, of Stable
        Diffusion's in its original names or of a generator (`dit`); or hf://owner/repo. Of a whole
        pipeline of diffusers the folder "vae" is taken if the kind is "vae".
      kind: one of `KINDS`; "" to recognise it by config.json or by the names of the tensors.

    Raises:
      UserError: nothing is there, it is not recognised, it is of another kind, or a tensor is
        missing, extra or of another shape.
    """
    if kind and kind not in KINDS:
        raise UserError(f"the kind of a network is one of {', '.join(KINDS)}; found {kind!r}")
    path = files.fetch(name, part=NETWORKS[kind].folder if kind in NETWORKS else None)
    try:
        found = _read(path, kind)
    except UserError:
        raise
    # Sizes that fit no network may raise nearly anything, in the module or in arithmetic before it.
    except (
        ValueError, TypeError, ArithmeticError, LookupError, AttributeError, MemoryError,
        RecursionError,
    ) as error:  # fmt: skip
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"{path} describes no network that can be built: {reason}") from error
    if kind and found.kind != kind:
        raise UserError(f"{path} holds a network of the kind {found.kind!r}; expected {kind!r}")
    check_fields(found.model, found.step, path)
    return found


def load_vae(name: str | Path) -> Network[VAE]:
    """Reads a VAE; arguments and errors as in `load_network`."""
    return cast(Network[VAE], load_network(name, kind="vae"))


def _read(path: Path, kind: str) -> Network[nn.Module]:
    if release.is_artifact(path):
        return _from_artifact(path)
    if ours := own_folders.files_of(path):
        return _from_ours(*ours)
    beside = path.parent
    if path.is_file() and (release.is_artifact(beside) or own_folders.files_of(beside)):
        raise UserError(f"{path} is a part of the network in {beside}: give that folder")
    if (path / PIPELINE).is_file():
        path = _part_of_pipeline(path, kind)
    return _from_others(path, kind)


def _part_of_pipeline(path: Path, kind: str) -> Path:
    """The folder of a network in a whole pipeline of diffusers."""
    folder = NETWORKS[kind].folder if kind in NETWORKS else None
    if folder is None or not (path / folder).is_dir():
        raise UserError(f"{path} is {describe_folder(path)}")
    return path / folder


def save_network(path: str | Path, network: Network[nn.Module], *, for_hub: bool = False) -> None:
    """Writes a folder that `load_network` reads: network.json and params.npz.

    With `for_hub` it holds config.json and model.safetensors, and all that is known of the network.
    """
    fields = own_folders.fields_record(network.model)
    record: dict[str, Any] = {"network": network.kind, "fields": fields}
    if network.kind == _GENERATOR:
        kind = generators.kind_of(network.model)
        record |= {} if kind == generators.DEFAULT_KIND else {"kind": kind}
    record |= {"step": network.step, "ema_decay": network.ema_decay}
    if for_hub:
        record |= {"class_names": network.class_names, "alpha_range": network.alpha_range}
    own_folders.write(Path(path), record, network.variables["params"], for_hub=for_hub)


def _from_ours(description: Path, params: Path) -> Network[nn.Module]:
    record = read_json(description)
    if (kind := record.get("network", _GENERATOR)) not in KINDS:
        raise UserError(
            f"{description} describes a network of the kind {kind!r:.100}; expected one of "
            f"{', '.join(KINDS)}"
        )
    try:
        given = record["fields"].items()
        model = _module_of(record)(**{name: own_folders.from_json(name, x) for name, x in given})
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{description} describes no network: {error!r}") from None
    found = own_folders.read_params(model, params)
    facts = own_folders.facts_of(record, description)
    return Network(record["network"], model, {"params": found}, **facts)


def _module_of(record: Mapping[str, Any]) -> type[nn.Module]:
    """The class that a network.json names. Raises KeyError if there is none."""
    if record["network"] == _GENERATOR:
        return generators.GENERATORS[record.get("kind", generators.DEFAULT_KIND)].module
    return NETWORKS[record["network"]].module


def _from_artifact(path: Path) -> Network[nn.Module]:
    artifact = release.read_artifact(path)
    step, decay = (artifact.metadata.get(name, 0) for name in ("step", "ema_decay"))
    return Network(
        kind_of(artifact.model), artifact.model, {"params": artifact.params}, step, decay
    )


def _from_others(path: Path, kind: str) -> Network[nn.Module]:
    file, config = files.find_weights(path), files.read_config(path)
    tensors: Mapping[str, np.ndarray] = files.read_tensors(file)
    kind = kind or _recognise(path, tensors, config)
    if kind == _GENERATOR and dit.is_generator(tensors):
        found = wrappers.unwrap(wrappers.select(tensors))
        return Network(kind, *dit.load(found, config, origin=str(file)))
    network = NETWORKS.get(kind)
    if network is None or network.load is None:
        raise UserError(
            f"{path} holds no {kind} of ours (network.json), none of the paper's release "
            "(metadata.json), and none of PyTorch (blocks.0.adaLN_modulation.1.weight)"
        )
    tensors = _network_tensors(network, tensors)
    arguments = (tensors, config) if network.takes_config else (tensors,)
    try:
        return Network(kind, *network.load(*arguments, origin=str(file)))
    except UserError as error:
        if config is None and network.takes_config:
            hint = "there is no config.json beside it, so the usual sizes were expected"
            raise UserError(f"{error} ({hint})") from None
        raise


def _network_tensors(
    network: NetworkType, tensors: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The tensors of the group that holds the network, without the names of torch's wrappers."""
    if network.takes_groups:
        group = wrappers.weight_group(tensors)
        inner = wrappers.select(tensors, group) if group else {}
        return wrappers.unwrap(inner if _has_any(inner, network.tensor_names) else tensors)
    return wrappers.unwrap(wrappers.select(tensors))


def _has_any(tensors: Mapping[str, np.ndarray], names: Sequence[str]) -> bool:
    """Whether a tensor has one of the names, with or without something before it."""
    return any(
        found == name or found.endswith((f".{name}", f"/{name}"))
        for name in names
        for found in tensors
    )


def _recognise(
    path: Path, tensors: Mapping[str, np.ndarray], config: Mapping[str, Any] | None
) -> str:
    named = {str(config.get(entry)) for entry in ("_class_name", "model_type")} if config else ()
    for kind, network in NETWORKS.items():
        if network.config_name in named:
            return kind
    for kind, network in NETWORKS.items():
        if _has_any(tensors, network.tensor_names):
            return kind
    if dit.is_generator(tensors):
        return _GENERATOR
    raise UserError(
        f"{path} holds no network that is known here ({len(tensors)} tensors, the first "
        f"{min(tensors, default='none')}): give its kind, one of {', '.join(KINDS)}"
    )
