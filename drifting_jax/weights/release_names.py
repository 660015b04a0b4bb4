"""Names of the release's generator and masked autoencoder, ours into theirs and back."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from drifting_jax.errors import UserError
from drifting_jax.models import dit
from drifting_jax.models.dit import DiT
from drifting_jax.models.resnet_mae import ResNetMAE
from drifting_jax.weights.mapping import Tensor, assemble, disassemble
from drifting_jax.weights.shapes import param_shapes

PyTree = Any

# Our name of a layer -> the release's.
_GENERATOR = {
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
_GENERATOR_ARRAYS = {
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
_UP = {"up_stage3": "up43", "up_stage2": "up32", "up_stage1": "up21", "up_stem": "up10"}


def table(model: DiT | ResNetMAE) -> dict[str, Tensor]:
    """{our path: Tensor}; the style books stand there as one array, `noise_embeds`."""
    name = _generator_name if isinstance(model, DiT) else _encoder_name
    paths = flatten_dict(param_shapes(_one_by_one(model)), sep="/")
    return {path: Tensor(name(path, model)) for path in paths}


def from_release(
    model: DiT | ResNetMAE, tensors: Mapping[str, np.ndarray], *, origin: str = "the file"
) -> PyTree:
    """Our parameters from {release's path: array}.

    Raises:
      UserError: a tensor is missing, extra or of another shape; it is named.
    """
    if isinstance(model, DiT):
        tensors = _stack_style_books(model, tensors, origin)
        for name in ("position_embedding", "context_embedding"):
            path = _GENERATOR_ARRAYS[name]
            if path in tensors and np.ndim(tensors[path]) == 3 and len(tensors[path]) == 1:
                tensors[path] = tensors[path][0]
    params = assemble(param_shapes(_one_by_one(model)), table(model), tensors, origin=origin)
    return dit.stack_blocks(params) if getattr(model, "scan", False) else params


def to_release(model: DiT | ResNetMAE, params: PyTree) -> dict[str, np.ndarray]:
    """{release's path: array} from our parameters, the inverse of `from_release`."""
    if getattr(model, "scan", False):
        params = dit.unstack_blocks(params)
    tensors = disassemble(params, table(model))
    if isinstance(model, DiT):
        for name in ("position_embedding", "context_embedding"):
            path = _GENERATOR_ARRAYS[name]
            if path in tensors:
                tensors[path] = tensors[path][None]
        books = tensors.pop(_GENERATOR_ARRAYS["style_books"], ())
        tensors |= {f"noise_embeds_{i}/embedding": book for i, book in enumerate(books)}
    return tensors


def _stack_style_books(
    model: DiT, tensors: Mapping[str, np.ndarray], origin: str
) -> dict[str, np.ndarray]:
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
        rest[_GENERATOR_ARRAYS["style_books"]] = np.stack([books[i] for i in range(wanted)])
    return rest


def _one_by_one(model: DiT | ResNetMAE) -> DiT | ResNetMAE:
    """The same network with a tree for each block."""
    return model.clone(scan=False) if isinstance(model, DiT) else model


def _generator_name(path: str, model: DiT) -> str:
    if path in _GENERATOR_ARRAYS:
        return _GENERATOR_ARRAYS[path]
    layer, leaf = path.rsplit("/", 1)
    leaf = "weight" if leaf == "scale" else leaf
    block = re.fullmatch(r"block_(\d+)/(.*)", layer)
    if not block:
        return f"{_GENERATOR[layer]}/{leaf}"
    inner = re.fullmatch(r"feed_forward/(\w+)", block[2])
    if inner:
        network, order = ("SwiGLUFFN_0", _SWIGLU) if model.swiglu else ("StandardMLP_0", _GELU)
        name = f"{network}/TorchLinear_{order[inner[1]]}/Dense_0"
    else:
        name = _BLOCK[block[2]]
    return f"LightningDiT_0/blocks_{block[1]}/{name}/{leaf}"


def _encoder_name(path: str, model: ResNetMAE) -> str:
    del model  # the names do not depend on it
    part, *layers, leaf = path.split("/")
    if part == "classifier":
        return f"fc/{leaf}"
    norm_or_conv = {"norm": "gn", "conv": "conv"}
    if part == "decoder":
        names = {"norm": "gn", "conv1": "proj", "conv2": "refine", "concat_norm": "concat_norm_fn"}
        return "/".join(["decoder", *(_UP.get(x, names.get(x, x)) for x in layers), leaf])
    if layers[0] == "stem":
        return f"encoder/{norm_or_conv[layers[1]]}1/{leaf}"
    stage, block = re.fullmatch(r"stage(\d+)_(?:block(\d+)|norm)", layers[0]).groups()
    if block is None:
        return f"encoder/layer{stage}_norm/{leaf}"
    kind = norm_or_conv[layers[2]]
    layer = f"proj_{kind}" if layers[1] == "shortcut" else f"{kind}{layers[1][-1]}"
    return f"encoder/stages_{int(stage) - 1}/layers_{int(block) - 1}/{layer}/{leaf}"
