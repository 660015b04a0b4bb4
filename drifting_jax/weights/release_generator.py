"""The generator (`DiT`) in the paper's release: its metadata and the names of its parameters."""

import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from drifting_jax.errors import UserError
from drifting_jax.models import dit
from drifting_jax.models.dit import DiT
from drifting_jax.weights.mapping import Tensor, assemble, disassemble
from drifting_jax.weights.shapes import param_shapes

PyTree = Any

# Our path of a layer -> the release's.
_LAYERS = {
    "class_embedding": "Embed_0",
    "scale_embedding/hidden": "TimestepEmbedder_0/TorchLinear_0/Dense_0",
    "scale_embedding/out": "TimestepEmbedder_0/TorchLinear_1/Dense_0",
    "scale_embedding/norm": "RMSNorm_0",
    "patch_embedding": "LightningDiT_0/TorchLinear_0/Dense_0",
    "context_projection": "LightningDiT_0/TorchLinear_1/Dense_0",
    "final/modulation/linear": "LightningDiT_0/FinalLayer_0/TorchLinear_0/Dense_0",
    "final/output": "LightningDiT_0/FinalLayer_0/TorchLinear_1/Dense_0",
    "final/norm": "LightningDiT_0/FinalLayer_0/RMSNorm_0",
}
_ARRAYS = {
    "position_embedding": "LightningDiT_0/pos_embed",
    "context_embedding": "LightningDiT_0/cls_embed",
    "style_books": "noise_embeds",
}
_BLOCK = {
    "modulation/linear": "TorchLinear_0/Dense_0",
    "attention_norm": "RMSNorm_0",
    "feed_forward_norm": "RMSNorm_1",
    "attention/qkv": "Attention_0/TorchLinear_0/Dense_0",
    "attention/out": "Attention_0/TorchLinear_1/Dense_0",
    "attention/q_norm": "Attention_0/q_norm",
    "attention/k_norm": "Attention_0/k_norm",
}
_SWIGLU = {"gate": 0, "up": 1, "down": 2}
_GELU = {"up": 0, "down": 1}
_STYLE_BOOK = re.compile(r"noise_embeds_(\d+)/embedding")
_POSITIONS = ("position_embedding", "context_embedding")  # have a leading axis of 1 there


def from_config(config: Mapping[str, Any]) -> DiT:
    """The network that a `model_config` describes.

    Raises:
      KeyError: a size is missing.
    """
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
        remat=config.get("use_remat", False) or "none",
    )


def to_config(model: DiT) -> dict[str, Any]:
    """The `model_config` of a network, the inverse of `from_config`."""
    return {
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
        "use_bf16": jnp.dtype(model.dtype) == jnp.bfloat16,
        "attn_fp32": jnp.dtype(model.attention_dtype or model.dtype) == jnp.float32,
        "use_remat": model.remat not in (False, "none"),
    }


def from_tensors(
    model: DiT, tensors: Mapping[str, np.ndarray], *, origin: str = "the file"
) -> PyTree:
    """Our parameters from {release's path: array}.

    Raises:
      UserError: a tensor is missing, extra or of another shape; it is named.
    """
    tensors = _stack_style_books(model, tensors, origin)
    for name in _POSITIONS:
        path = _ARRAYS[name]
        if path in tensors and np.ndim(tensors[path]) == 3 and len(tensors[path]) == 1:
            tensors[path] = tensors[path][0]
    template = param_shapes(model.clone(scan=False), tensors=len(tensors))
    params = assemble(template, _table(model), tensors, origin=origin)
    return dit.stack_blocks(params) if model.scan else params


def to_tensors(model: DiT, params: PyTree) -> dict[str, np.ndarray]:
    """{release's path: array} from our parameters, the inverse of `from_tensors`."""
    if model.scan:
        params = dit.unstack_blocks(params)
    tensors = disassemble(params, _table(model))
    for name in _POSITIONS:
        path = _ARRAYS[name]
        if path in tensors:
            tensors[path] = tensors[path][None]
    books = tensors.pop(_ARRAYS["style_books"], ())
    return tensors | {f"noise_embeds_{i}/embedding": book for i, book in enumerate(books)}


def _table(model: DiT) -> dict[str, Tensor]:
    """{our path: Tensor} with a tree for each block, and all style books as one `noise_embeds`."""
    paths = flatten_dict(param_shapes(model.clone(scan=False)), sep="/")
    return {path: Tensor(_name(path, model)) for path in paths}


def _stack_style_books(
    model: DiT, tensors: Mapping[str, np.ndarray], origin: str
) -> dict[str, np.ndarray]:
    """The tensors with all style books in one array [books, codes, width]."""
    books = {int(m[1]): x for name, x in tensors.items() if (m := _STYLE_BOOK.fullmatch(name))}
    rest = {name: x for name, x in tensors.items() if not _STYLE_BOOK.fullmatch(name)}
    wanted = model.num_style_books if model.styles_per_book else 0
    for i in range(wanted):
        expected = (model.styles_per_book, model.condition_width or model.width)
        if i not in books:
            raise UserError(f"{origin} lacks noise_embeds_{i}/embedding")
        if np.shape(books[i]) != expected:
            raise UserError(
                f"noise_embeds_{i}/embedding of {origin} has the shape {np.shape(books[i])}; "
                f"expected {expected}"
            )
    extra = sorted(set(books) - set(range(wanted)))
    if extra:
        raise UserError(
            f"{origin} holds noise_embeds_{extra[0]}/embedding, which this network has no place for"
        )
    if wanted:
        rest[_ARRAYS["style_books"]] = np.stack([books[i] for i in range(wanted)])
    return rest


def _name(path: str, model: DiT) -> str:
    if path in _ARRAYS:
        return _ARRAYS[path]
    layer, leaf = path.rsplit("/", 1)
    leaf = "weight" if leaf == "scale" else leaf
    block = re.fullmatch(r"block_(\d+)/(.*)", layer)
    if not block:
        return f"{_LAYERS[layer]}/{leaf}"
    inner = re.fullmatch(r"feed_forward/(\w+)", block[2])
    if inner:
        network, order = ("SwiGLUFFN_0", _SWIGLU) if model.swiglu else ("StandardMLP_0", _GELU)
        name = f"{network}/TorchLinear_{order[inner[1]]}/Dense_0"
    else:
        name = _BLOCK[block[2]]
    return f"LightningDiT_0/blocks_{block[1]}/{name}/{leaf}"
