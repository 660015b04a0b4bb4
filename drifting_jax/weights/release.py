"""Generators and masked autoencoders in the format of the paper's release, read and written.

An artifact is a directory, or its folder `params_ema`, with `metadata.json` (kind, architecture,
step, decay of the average) and `ema_params.msgpack` (flax's msgpack of the parameters).
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.serialization
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from drifting_jax.errors import UserError
from drifting_jax.models.dit import DiT
from drifting_jax.models.resnet_mae import ResNetMAE
from drifting_jax.weights.release_names import from_release, to_release

PyTree = Any

_PARAMS, _METADATA, _FOLDER = "ema_params.msgpack", "metadata.json", "params_ema"
_GROUPS = 32  # of every GroupNorm there; not a setting


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A network as published.

    Attributes:
      model: `DiT` or `ResNetMAE`, with the architecture, dtypes and remat of the metadata.
      params: its parameters, NumPy float32.
      metadata: the whole of metadata.json: "kind", "step", "ema_decay", "model_config", ...
    """

    model: DiT | ResNetMAE
    params: PyTree
    metadata: Mapping[str, Any]


def is_artifact(path: Path) -> bool:
    """Whether a directory, or its folder `params_ema`, holds an artifact."""
    return any((folder / _METADATA).is_file() for folder in (path, path / _FOLDER))


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
    except Exception as error:  # msgpack and flax raise whatever the bytes lead to
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"{folder / _PARAMS} cannot be read as flax's msgpack ({reason}): download it again"
        ) from None
    return Artifact(model, from_release(model, tensors, origin=str(folder / _PARAMS)), metadata)


def write_artifact(
    path: str | os.PathLike,
    model: DiT | ResNetMAE,
    params: PyTree,
    *,
    step: int,
    ema_decay: float,
) -> Path:
    """Writes `<path>/params_ema` in the release's format; returns that folder.

    Args:
      path: directory, made if it is not there.
      model: the network; see `metadata_of` for what the format cannot say.
      params: its parameters, float32.
      step: training steps behind them.
      ema_decay: of the average that they are.

    Raises:
      UserError: the format has no place for the architecture.
    """
    metadata = metadata_of(model, step=step, ema_decay=ema_decay)
    tree = unflatten_dict(to_release(model, params), sep="/")
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


def model_of(metadata: Mapping[str, Any], *, origin: str = _METADATA) -> DiT | ResNetMAE:
    """The network that a metadata.json describes.

    Raises:
      UserError: another kind than "gen" and "mae", or a size is missing.
    """
    makers = {"gen": _generator_of, "mae": _encoder_of}
    kind, config = metadata.get("kind"), metadata.get("model_config")
    if kind not in makers or not isinstance(config, Mapping):
        raise UserError(
            f"{origin}: the kind must be 'gen' or 'mae', with a model_config; found {kind!r}"
        )
    try:
        return makers[kind](config)
    except KeyError as error:
        raise UserError(f"{origin}: model_config lacks {error}") from None


def _generator_of(config: Mapping[str, Any]) -> DiT:
    bfloat16 = config.get("use_bf16", False)
    return DiT(
        image_size=config["input_size"],
        in_channels=config["in_channels"],
        out_channels=config["out_channels"],
        patch_size=config["patch_size"],
        width=config["hidden_size"],
        depth=config["depth"],
        num_heads=config["num_heads"],
        num_classes=config["num_classes"],
        mlp_ratio=config.get("mlp_ratio", 4.0),
        condition_width=config["cond_dim"],
        num_context_tokens=config["n_cls_tokens"],
        num_style_books=config["noise_coords"],
        styles_per_book=config["noise_classes"],
        qk_norm=config.get("use_qknorm", False),
        swiglu=config.get("use_swiglu", False),
        rope=config.get("use_rope", False),
        rms_norm=config.get("use_rmsnorm", False),
        dtype=jnp.bfloat16 if bfloat16 else jnp.float32,
        attention_dtype=jnp.float32 if config.get("attn_fp32", True) else None,
        remat=config.get("use_remat", False),
    )


def _encoder_of(config: Mapping[str, Any]) -> ResNetMAE:
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


def metadata_of(model: DiT | ResNetMAE, *, step: int, ema_decay: float) -> dict[str, Any]:
    """The metadata.json of a network.

    Raises:
      UserError: the autoencoder has other than four stages or 32 groups, which is not said there.
    """
    bfloat16 = jnp.dtype(model.dtype) == jnp.bfloat16
    if isinstance(model, DiT):
        kind = "gen"
        config = {
            "cond_dim": model.condition_width or model.width,
            "num_classes": model.num_classes,
            "noise_classes": model.styles_per_book,
            "noise_coords": model.num_style_books,
            "input_size": model.image_size,
            "in_channels": model.in_channels,
            "n_cls_tokens": model.num_context_tokens,
            "patch_size": model.patch_size,
            "hidden_size": model.width,
            "depth": model.depth,
            "num_heads": model.num_heads,
            "mlp_ratio": model.mlp_ratio,
            "out_channels": model.out_channels,
            "use_qknorm": model.qk_norm,
            "use_swiglu": model.swiglu,
            "use_rope": model.rope,
            "use_rmsnorm": model.rms_norm,
            "use_bf16": bfloat16,
            "attn_fp32": jnp.dtype(model.attention_dtype or model.dtype) == jnp.float32,
            "use_remat": model.remat,
        }
    else:
        if len(model.blocks) != 4 or model.groups != _GROUPS:
            raise UserError(
                f"the release's format holds autoencoders of 4 stages and {_GROUPS} groups; this "
                f"one has {len(model.blocks)} and {model.groups}"
            )
        kind = "mae"
        config = {
            "num_classes": model.num_classes,
            "base_channels": model.width,
            "patch_size": model.mask_patch_size,
            "dropout_prob": 0.0,
            "layers": list(model.blocks),
            "in_channels": model.in_channels,
            "use_bf16": bfloat16,
            "input_patch_size": model.input_patch_size,
        }
    return {
        "format": "flax.msgpack",
        "kind": kind,
        "backend": "jax",
        "ema_decay": ema_decay,
        "step": step,
        "path": f"{_FOLDER}/{_PARAMS}",
        "model_config": config,
    }


def _read_metadata(path: Path) -> dict[str, Any]:
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is no JSON: {error}") from None
    if not isinstance(metadata, dict):
        raise UserError(f"{path} must hold a JSON object")
    return metadata
