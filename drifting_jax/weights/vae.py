"""The autoencoder of Stable Diffusion from the diffusers library (`AutoencoderKL`)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from drifting_jax.errors import UserError
from drifting_jax.models.vae import VAE
from drifting_jax.weights.mapping import PyTree, Tensor, assemble
from drifting_jax.weights.shapes import param_shapes
from drifting_jax.weights.vae_names import diffusers_names, has_original_names
from drifting_jax.weights.wrappers import without_prefix

# Defaults of entries that a config.json lacks.
_SIZES = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": (64,),
    "layers_per_block": 1,
    "norm_num_groups": 32,
    "scaling_factor": 0.18215,
}
# Entries of a config.json that must have these values, or be absent.
_FIXED = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "latents_mean": None,
    "latents_std": None,
    "mid_block_add_attention": True,
    "shift_factor": None,
    "use_post_quant_conv": True,
    "use_quant_conv": True,
}
_BLOCK_TYPES = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}

_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "out": "to_out.0"}
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OLD_NAME = re.compile(rf"(.*mid_block\.attentions\.0\.)({'|'.join(_OLD_ATTENTION)})(\.\w+)")
# Tensors that no other network has, by diffusers' and by the original names.
TENSOR_NAMES = ("decoder.mid_block.resnets.0.conv1.weight", "decoder.mid.block_1.conv1.weight")
_XL = "conditioner.embedders."  # a part of every checkpoint of Stable Diffusion XL
# What the original training adds: a discriminator, and averages of the same weights.
_IGNORED = (r"loss\..*", r"model_ema\..*")
_PROJECTION = re.compile(r".*mid_block\.attentions\.0\.to_(q|k|v|out\.0)\.weight")


def from_config(config: Mapping[str, Any], *, dtype: DTypeLike = jnp.float32) -> VAE:
    """The network that a config.json describes; missing entries have diffusers' defaults.

    Args:
      config: the object in the file.
      dtype: compute dtype.

    Raises:
      UserError: the config describes a variant that `VAE` does not implement.
    """
    for key, value in _FIXED.items():
        if config.get(key, value) != value:
            raise UserError(f"the autoencoder's {key} must be {value!r}, found {config[key]!r}")
    sizes = {key: config.get(key, default) for key, default in _SIZES.items()}
    sizes["block_out_channels"] = tuple(sizes["block_out_channels"])
    for key, kind in _BLOCK_TYPES.items():
        expected = [kind] * len(sizes["block_out_channels"])
        if list(config.get(key, expected)) != expected:
            raise UserError(f"the autoencoder's {key} must be {expected}, found {config[key]}")
    return VAE(**sizes, dtype=dtype)


def table(model: VAE) -> dict[str, Tensor]:
    """{path under "params": its tensor in a file with the present names of diffusers}."""
    widths = model.block_out_channels
    last = len(widths) - 1
    entries: dict[str, Tensor] = {}
    for name in ("quant_conv", "post_quant_conv"):
        entries |= _affine(name, name, "conv")
    for side in ("encoder", "decoder"):
        for conv in ("conv_in", "conv_out"):
            entries |= _affine(f"{side}/{conv}", f"{side}.{conv}", "conv")
        entries |= _norm(f"{side}/norm_out", f"{side}.conv_norm_out")
        entries |= _mid(f"{side}/mid", f"{side}.mid_block")
    for side, way, depth, ordered in (
        ("encoder", "down", model.layers_per_block, widths),
        ("decoder", "up", model.layers_per_block + 1, widths[::-1]),
    ):
        previous = ordered[0]
        for i, width in enumerate(ordered):
            ours, theirs = f"{side}/{way}{i}", f"{side}.{way}_blocks.{i}"
            for j in range(depth):
                projected = j == 0 and previous != width
                entries |= _resnet(f"{ours}/resnet{j}", f"{theirs}.resnets.{j}", projected)
            if i < last:
                sampler = f"{theirs}.{way}samplers.0.conv"
                entries |= _affine(f"{ours}/{way}sample", sampler, "conv")
            previous = width
    return entries


def load(
    tensors: Mapping[str, np.ndarray],
    config: Mapping[str, Any] | None = None,
    *,
    dtype: DTypeLike = jnp.float32,
    origin: str = "the file",
) -> tuple[VAE, PyTree]:
    """The network and its variables from the tensors of a file.

    The projections of the attention may have their old names (`query`, `key`, `value`,
    `proj_attn`), and may be stored as 1x1 convolutions.

    Args:
      tensors: arrays by name, as in `diffusion_pytorch_model.safetensors` of diffusers or as in
        `vae-ft-mse-840000-ema-pruned.safetensors` of the original code, with or without a prefix
        such as "first_stage_model.".
      config: the object in config.json; None for the published sizes (`VAE()`).
      dtype: compute dtype.
      origin: what to call the file in an error.

    Returns:
      The model and {"params": ...} of float32 NumPy arrays.

    Raises:
      UserError: the config describes another network; a tensor is missing, has another shape or
        is left over.
    """
    if config is None and any(name.startswith(_XL) for name in tensors):
        raise UserError(
            f"{origin} is a checkpoint of Stable Diffusion XL, whose latents have another scale "
            "than those of Stable Diffusion: give the folder of its VAE, with its config.json"
        )
    tensors = without_prefix(tensors, TENSOR_NAMES, origin=origin)
    model = VAE(dtype=dtype) if config is None else from_config(config, dtype=dtype)
    if has_original_names(tensors):
        tensors = diffusers_names(tensors)
        origin = f"{origin}, read by diffusers' names,"
    tensors = _present_names(tensors, origin)
    params = assemble(
        param_shapes(model, tensors=len(tensors)),
        table(model),
        tensors,
        ignored=_IGNORED,
        origin=origin,
    )
    return model, {"params": params}


def _present_names(tensors: Mapping[str, np.ndarray], origin: str) -> dict[str, np.ndarray]:
    """The tensors with the names and shapes that diffusers now has for the attention."""
    renamed = {}
    for name, tensor in tensors.items():
        old = _OLD_NAME.fullmatch(name)
        new = f"{old[1]}{_OLD_ATTENTION[old[2]]}{old[3]}" if old else name
        if old and new in tensors:
            raise UserError(f"{origin} holds both {name} and {new}")
        if _PROJECTION.fullmatch(new) and tensor.ndim == 4 and tensor.shape[2:] == (1, 1):
            tensor = tensor[:, :, 0, 0]
        renamed[new] = tensor
    return renamed


def _affine(ours: str, theirs: str, layout: str) -> dict[str, Tensor]:
    return {
        f"{ours}/kernel": Tensor(f"{theirs}.weight", layout),
        f"{ours}/bias": Tensor(f"{theirs}.bias"),
    }


def _norm(ours: str, theirs: str) -> dict[str, Tensor]:
    return {f"{ours}/scale": Tensor(f"{theirs}.weight"), f"{ours}/bias": Tensor(f"{theirs}.bias")}


def _resnet(ours: str, theirs: str, projected: bool) -> dict[str, Tensor]:
    entries: dict[str, Tensor] = {}
    for i in (1, 2):
        entries |= _norm(f"{ours}/norm{i}", f"{theirs}.norm{i}")
        entries |= _affine(f"{ours}/conv{i}", f"{theirs}.conv{i}", "conv")
    if projected:
        entries |= _affine(f"{ours}/shortcut", f"{theirs}.conv_shortcut", "conv")
    return entries


def _mid(ours: str, theirs: str) -> dict[str, Tensor]:
    attention = f"{theirs}.attentions.0"
    entries = _norm(f"{ours}/attention/norm", f"{attention}.group_norm")
    for name, projection in _ATTENTION.items():
        entries |= _affine(f"{ours}/attention/{name}", f"{attention}.{projection}", "linear")
    for i in (0, 1):
        entries |= _resnet(f"{ours}/resnet{i}", f"{theirs}.resnets.{i}", projected=False)
    return entries
