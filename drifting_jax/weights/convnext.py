"""ConvNeXt-V2 from the transformers library: `ConvNextV2ForImageClassification`, `ConvNextV2Model`.

The paper's pixel runs use `facebook/convnextv2-base-22k-224`.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from drifting_jax.errors import UserError
from drifting_jax.models.convnext import ConvNeXtV2
from drifting_jax.weights.mapping import PyTree, Tensor, assemble
from drifting_jax.weights.shapes import param_shapes

_PREFIX = "convnextv2."
_CLASSIFIER = r"classifier\.(weight|bias)"

# Entries of a config.json that must have these values, or be absent.
_FIXED = {"model_type": "convnextv2", "hidden_act": "gelu", "num_channels": 3}


def table(model: ConvNeXtV2) -> dict[str, Tensor]:
    """{path under "params": its tensor in a file with transformers' names}."""
    embeddings = f"{_PREFIX}embeddings"
    entries = {
        **_conv("trunk/stem", f"{embeddings}.patch_embeddings"),
        **_scale_and_bias("trunk/stem_norm", f"{embeddings}.layernorm"),
        **_scale_and_bias("norm", f"{_PREFIX}layernorm"),
    }
    for i, depth in enumerate(model.depths):
        ours, theirs = f"trunk/stage{i + 1}", f"{_PREFIX}encoder.stages.{i}"
        if i > 0:
            entries |= _scale_and_bias(f"{ours}_norm", f"{theirs}.downsampling_layer.0")
            entries |= _conv(f"{ours}_downsample", f"{theirs}.downsampling_layer.1")
        for j in range(depth):
            entries |= _block(f"{ours}_block{j + 1}", f"{theirs}.layers.{j}")
    return entries


def from_config(config: Mapping[str, Any], *, dtype: DTypeLike = jnp.float32) -> ConvNeXtV2:
    """The network that a config.json describes; missing entries have transformers' defaults.

    `layer_norm_eps` is not read: every norm has epsilon 1e-6, as the network was trained.

    Args:
      config: the object in the file.
      dtype: compute dtype.

    Raises:
      UserError: the config is of another architecture.
    """
    for field, expected in _FIXED.items():
        if config.get(field, expected) != expected:
            raise UserError(
                f"{field} of a ConvNeXt-V2 config must be {expected!r}, found {config[field]!r}"
            )
    return ConvNeXtV2(
        depths=tuple(config.get("depths", (3, 3, 9, 3))),
        widths=tuple(config.get("hidden_sizes", (96, 192, 384, 768))),
        patch_size=config.get("patch_size", 4),
        image_size=config.get("image_size", 224),
        dtype=dtype,
    )


def load(
    tensors: Mapping[str, np.ndarray],
    config: Mapping[str, Any] | None = None,
    *,
    dtype: DTypeLike = jnp.float32,
    origin: str = "the file",
) -> tuple[ConvNeXtV2, PyTree]:
    """The network and its variables.

    Args:
      tensors: arrays by name, with or without the prefix "convnextv2."; the classifier is ignored.
      config: the object in the config.json beside the file; None for transformers' default sizes.
      dtype: compute dtype.
      origin: what to call the file in an error.

    Returns:
      The model and {"params": ...} of float32 NumPy arrays.

    Raises:
      UserError: the config is of another architecture; a tensor is missing, has another shape or is
        left over.
    """
    model = from_config(config or {}, dtype=dtype)
    tensors = {_full_name(name): array for name, array in tensors.items()}
    params = assemble(
        param_shapes(model, tensors=len(tensors)),
        table(model),
        tensors,
        ignored=(_CLASSIFIER,),
        origin=origin,
    )
    return model, {"params": params}


def _full_name(name: str) -> str:
    """The name in `ConvNextV2ForImageClassification` of a tensor of it or of `ConvNextV2Model`."""
    parts = ("embeddings.", "encoder.", "layernorm.")
    return f"{_PREFIX}{name}" if name.startswith(parts) else name


def _scale_and_bias(ours: str, theirs: str) -> dict[str, Tensor]:
    return {
        f"{ours}/scale": Tensor(f"{theirs}.weight"),
        f"{ours}/bias": Tensor(f"{theirs}.bias"),
    }


def _conv(ours: str, theirs: str, layout: str = "conv") -> dict[str, Tensor]:
    return {
        f"{ours}/kernel": Tensor(f"{theirs}.weight", layout),
        f"{ours}/bias": Tensor(f"{theirs}.bias"),
    }


def _block(ours: str, theirs: str) -> dict[str, Tensor]:
    return {
        **_conv(f"{ours}/depthwise", f"{theirs}.dwconv"),
        **_scale_and_bias(f"{ours}/norm", f"{theirs}.layernorm"),
        **_conv(f"{ours}/up", f"{theirs}.pwconv1", "linear"),
        **_scale_and_bias(f"{ours}/response_norm", f"{theirs}.grn"),
        **_conv(f"{ours}/down", f"{theirs}.pwconv2", "linear"),
    }
