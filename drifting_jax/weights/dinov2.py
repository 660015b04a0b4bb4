"""DINOv2 from the transformers library (`Dinov2Model`) or from torch.hub."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from drifting_jax.errors import UserError
from drifting_jax.models.dinov2 import DINOv2
from drifting_jax.weights.mapping import PyTree, Tensor, assemble
from drifting_jax.weights.shapes import param_shapes
from drifting_jax.weights.wrappers import without_prefix

# Defaults of entries that a config.json lacks.
_SIZES = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 14,
}
# Entries of a config.json that must have these values, or be absent.
_FIXED = {
    "model_type": "dinov2",
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "num_channels": 3,
    "qkv_bias": True,
}
# Tensors that no other network has.
TENSOR_NAMES = ("blocks.0.ls1.gamma", "encoder.layer.0.layer_scale1.lambda1")
_HEAD_WIDTH = 64  # at every published size
_HUB_OFFSET = 0.1  # `position_offset` of facebookresearch's code

# The token of hidden patches, which only training needs, and a classifier trained on top.
_IGNORED = (r"embeddings\.mask_token", r"classifier\.(weight|bias)")

# Name of a tensor in torch.hub's files -> transformers' name.
_HUB = {
    r"cls_token": "embeddings.cls_token",
    r"mask_token": "embeddings.mask_token",
    r"pos_embed": "embeddings.position_embeddings",
    r"patch_embed\.proj\.(weight|bias)": r"embeddings.patch_embeddings.projection.\1",
    r"norm\.(weight|bias)": r"layernorm.\1",
    r"blocks\.(\d+)\.(norm[12])\.(weight|bias)": r"encoder.layer.\1.\2.\3",
    r"blocks\.(\d+)\.attn\.proj\.(weight|bias)": r"encoder.layer.\1.attention.output.dense.\2",
    r"blocks\.(\d+)\.ls([12])\.gamma": r"encoder.layer.\1.layer_scale\2.lambda1",
    r"blocks\.(\d+)\.mlp\.(fc[12])\.(weight|bias)": r"encoder.layer.\1.mlp.\2.\3",
    r"blocks\.(\d+)\.mlp\.w12\.(weight|bias)": r"encoder.layer.\1.mlp.weights_in.\2",
    r"blocks\.(\d+)\.mlp\.w3\.(weight|bias)": r"encoder.layer.\1.mlp.weights_out.\2",
}
_HUB_QKV = re.compile(r"blocks\.(\d+)\.attn\.qkv\.(weight|bias)")
_BLOCK = re.compile(r"encoder\.layer\.(\d+)\..*")


def table(model: DINOv2) -> dict[str, Tensor]:
    """{path under "params": its tensor in a file with transformers' names}."""
    entries = {
        "embeddings/class_token": Tensor("embeddings.cls_token"),
        "embeddings/positions": Tensor("embeddings.position_embeddings"),
        **_affine("embeddings/patches", "embeddings.patch_embeddings.projection", "conv"),
        **_norm("norm", "layernorm"),
    }
    for i in range(model.depth):
        entries |= _block(f"block{i + 1}", f"encoder.layer.{i}", model.swiglu)
    return entries


def from_config(
    config: Mapping[str, Any], *, position_offset: float = 0.0, dtype: DTypeLike = jnp.float32
) -> DINOv2:
    """The network that a config.json describes; missing entries have transformers' defaults.

    Args:
      config: the object in the file.
      position_offset: field of the network.
      dtype: compute dtype.

    Raises:
      UserError: the config is of another architecture, or its sizes do not fit each other.
    """
    for key, value in _FIXED.items():
        if config.get(key, value) != value:
            raise UserError(f"{key} of a DINOv2 config must be {value!r}, found {config[key]!r}")
    sizes = {key: config.get(key, default) for key, default in _SIZES.items()}
    for key, size in sizes.items():
        if type(size) is not int or size < 1:
            raise UserError(f"{key} of a DINOv2 config must be an integer of 1 or more: {size!r}")
    width, heads = sizes["hidden_size"], sizes["num_attention_heads"]
    if width % heads:
        raise UserError(f"num_attention_heads must divide hidden_size {width}, found {heads}")
    return DINOv2(
        width=width,
        depth=sizes["num_hidden_layers"],
        num_heads=heads,
        patch_size=sizes["patch_size"],
        position_grid=sizes["image_size"] // sizes["patch_size"],
        position_offset=position_offset,
        mlp_ratio=config.get("mlp_ratio", 4),
        swiglu=config.get("use_swiglu_ffn", False),
        dtype=dtype,
    )


def load(
    tensors: Mapping[str, np.ndarray],
    config: Mapping[str, Any] | None = None,
    *,
    position_offset: float | None = None,
    dtype: DTypeLike = jnp.float32,
    origin: str = "the file",
) -> tuple[DINOv2, PyTree]:
    """The network and its variables.

    Args:
      tensors: arrays by transformers' names or by torch.hub's, with or without a prefix such as
        "dinov2." or "backbone.".
      config: the object in transformers' config.json. None, since a file of torch.hub has no
        config.json, takes the sizes from the tensors, with heads of width 64 and feed-forward
        networks of 4 times the width, as at every published size.
      position_offset: field of the network; None for that of the library whose names the tensors
        have: 0.1 for torch.hub, 0 for transformers.
      dtype: compute dtype.
      origin: what to call the file in an error.

    Returns:
      The model and {"params": ...} of float32 NumPy arrays. `model.clone(feature_blocks=..., ...)`
      changes fields that no shape depends on.

    Raises:
      UserError: the config is of another architecture; a tensor is missing, has another shape or is
        left over.
    """
    tensors = without_prefix(tensors, TENSOR_NAMES, origin=origin)
    hub = any(name == "pos_embed" or name.startswith("blocks.") for name in tensors)
    if hub:
        tensors = _transformers_names(tensors, origin)
        origin = f"{origin}, read by transformers' names,"
    else:
        tensors = {name.removeprefix("dinov2."): array for name, array in tensors.items()}
    if config is None:
        config = _sizes(tensors, origin)
    if position_offset is None:
        position_offset = _HUB_OFFSET if hub else 0.0
    model = from_config(config, position_offset=position_offset, dtype=dtype)
    params = assemble(
        param_shapes(model, tensors=len(tensors)),
        table(model),
        tensors,
        ignored=_IGNORED,
        origin=origin,
    )
    return model, {"params": params}


def _transformers_names(tensors: Mapping[str, np.ndarray], origin: str) -> dict[str, np.ndarray]:
    """Renames torch.hub's tensors to transformers' names; unknown names are kept."""
    renamed = {}
    for name, tensor in tensors.items():
        if fused := _HUB_QKV.fullmatch(name):
            if np.ndim(tensor) < 1 or len(tensor) % 3:
                raise UserError(
                    f"{name} of {origin} must hold queries, keys and values in three equal parts, "
                    f"found the shape {np.shape(tensor)}"
                )
            attention = f"encoder.layer.{fused[1]}.attention.attention"
            for part, array in zip(("query", "key", "value"), np.split(tensor, 3), strict=True):
                renamed[f"{attention}.{part}.{fused[2]}"] = array
        else:
            renamed[_renamed(name)] = tensor
    return renamed


def _renamed(name: str) -> str:
    for pattern, replacement in _HUB.items():
        if match := re.fullmatch(pattern, name):
            return match.expand(replacement)
    return name


def _sizes(tensors: Mapping[str, np.ndarray], origin: str) -> dict[str, Any]:
    """Entries of a config.json, from the names and shapes of the tensors."""
    patches = "embeddings.patch_embeddings.projection.weight"
    positions = "embeddings.position_embeddings"
    for name, rank in ((patches, 4), (positions, 3)):
        if name not in tensors:
            raise UserError(f"{origin} lacks {name}")
        if np.ndim(tensors[name]) != rank:
            shape = np.shape(tensors[name])
            raise UserError(f"{name} of {origin} must have {rank} axes, found the shape {shape}")
    width, _, size, _ = tensors[patches].shape
    if width % _HEAD_WIDTH:
        raise UserError(
            f"{origin} has {width} channels, not a multiple of {_HEAD_WIDTH}: "
            "its config.json must say how many heads that is"
        )
    indices = [int(match[1]) for name in tensors if (match := _BLOCK.fullmatch(name))]
    return {
        "hidden_size": width,
        "num_hidden_layers": max(indices, default=0) + 1,
        "num_attention_heads": width // _HEAD_WIDTH,
        "patch_size": size,
        "image_size": size * round((tensors[positions].shape[1] - 1) ** 0.5),
        "use_swiglu_ffn": any(".mlp.weights_in." in name for name in tensors),
    }


def _affine(ours: str, theirs: str, layout: str = "linear") -> dict[str, Tensor]:
    return {
        f"{ours}/kernel": Tensor(f"{theirs}.weight", layout),
        f"{ours}/bias": Tensor(f"{theirs}.bias"),
    }


def _norm(ours: str, theirs: str) -> dict[str, Tensor]:
    return {f"{ours}/scale": Tensor(f"{theirs}.weight"), f"{ours}/bias": Tensor(f"{theirs}.bias")}


def _block(ours: str, theirs: str, swiglu: bool) -> dict[str, Tensor]:
    attention, mlp = f"{theirs}.attention", f"{theirs}.mlp"
    up, down = ("gate_and_up", "weights_in"), ("down", "weights_out")
    if not swiglu:
        up, down = ("up", "fc1"), ("down", "fc2")
    entries = {
        **_norm(f"{ours}/attention_norm", f"{theirs}.norm1"),
        **_norm(f"{ours}/feed_forward_norm", f"{theirs}.norm2"),
        f"{ours}/attention_scale": Tensor(f"{theirs}.layer_scale1.lambda1"),
        f"{ours}/feed_forward_scale": Tensor(f"{theirs}.layer_scale2.lambda1"),
        **_affine(f"{ours}/attention/out", f"{attention}.output.dense"),
    }
    for name in ("query", "key", "value"):
        entries |= _affine(f"{ours}/attention/{name}", f"{attention}.attention.{name}")
    for name, foreign in (up, down):
        entries |= _affine(f"{ours}/feed_forward/{name}", f"{mlp}.{foreign}")
    return entries
