"""The masked autoencoder (`ResNetMAE`) in the paper's release: its metadata and its names."""

import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from drifting_jax.errors import UserError
from drifting_jax.models.resnet_mae import ResNetMAE
from drifting_jax.weights.mapping import Tensor, assemble, disassemble
from drifting_jax.weights.shapes import param_shapes

PyTree = Any

_STAGES, _GROUPS = 4, 32  # of every published one; the format holds no others

# Our name of a part of a layer's path -> the release's.
_UP = {"up_stage3": "up43", "up_stage2": "up32", "up_stage1": "up21", "up_stem": "up10"}
_DECODER = {"norm": "gn", "conv1": "proj", "conv2": "refine", "concat_norm": "concat_norm_fn"} | _UP
_NORM_OR_CONV = {"norm": "gn", "conv": "conv"}


def from_config(config: Mapping[str, Any]) -> ResNetMAE:
    """The network that a `model_config` describes.

    Raises:
      KeyError: a size is missing.
    """
    return ResNetMAE(
        in_channels=config["in_channels"],
        width=config["base_channels"],
        num_classes=config["num_classes"],
        blocks=tuple(config["layers"]),
        input_patch_size=config["input_patch_size"],
        mask_patch_size=config["patch_size"],
        groups=_GROUPS,
        dtype=jnp.bfloat16 if config.get("use_bf16", False) else jnp.float32,
    )


def to_config(model: ResNetMAE) -> dict[str, Any]:
    """The `model_config` of a network, the inverse of `from_config`.

    Raises:
      UserError: it has another number of stages or groups than the format holds.
    """
    if len(model.blocks) != _STAGES or model.groups != _GROUPS:
        raise UserError(
            f"the release's format holds autoencoders of {_STAGES} stages and {_GROUPS} groups; "
            f"this one has {len(model.blocks)} and {model.groups}"
        )
    return {
        "num_classes": model.num_classes,
        "base_channels": model.width,
        "patch_size": model.mask_patch_size,
        "dropout_prob": 0.0,
        "layers": list(model.blocks),
        "in_channels": model.in_channels,
        "use_bf16": jnp.dtype(model.dtype) == jnp.bfloat16,
        "input_patch_size": model.input_patch_size,
    }


def from_tensors(
    model: ResNetMAE, tensors: Mapping[str, np.ndarray], *, origin: str = "the file"
) -> PyTree:
    """Our parameters from {release's path: array}.

    Raises:
      UserError: a tensor is missing, extra or of another shape; it is named.
    """
    template = param_shapes(model, tensors=len(tensors))
    return assemble(template, _table(model), tensors, origin=origin)


def to_tensors(model: ResNetMAE, params: PyTree) -> dict[str, np.ndarray]:
    """{release's path: array} from our parameters, the inverse of `from_tensors`."""
    return disassemble(params, _table(model))


def _table(model: ResNetMAE) -> dict[str, Tensor]:
    return {path: Tensor(_name(path)) for path in flatten_dict(param_shapes(model), sep="/")}


def _name(path: str) -> str:
    part, *layers, leaf = path.split("/")
    if part == "classifier":
        return f"fc/{leaf}"
    if part == "decoder":
        return "/".join(["decoder", *(_DECODER.get(x, x) for x in layers), leaf])
    if layers[0] == "stem":
        return f"encoder/{_NORM_OR_CONV[layers[1]]}1/{leaf}"
    found = re.fullmatch(r"stage(\d+)_(?:block(\d+)|norm)", layers[0])
    assert found is not None, f"{path} is no parameter of ResNetMAE"
    stage, block = found.groups()
    if block is None:
        return f"encoder/layer{stage}_norm/{leaf}"
    kind = _NORM_OR_CONV[layers[2]]
    layer = f"proj_{kind}" if layers[1] == "shortcut" else f"{kind}{layers[1][-1]}"
    return f"encoder/stages_{int(stage) - 1}/layers_{int(block) - 1}/{layer}/{leaf}"
