"""Names of the released networks' parameters, translated into the names of this package.

Each function takes `{'released/path': array}` and returns a nested tree of parameters.
"""

import re

import numpy as np
from flax.traverse_util import unflatten_dict

_BLOCK = {
    "TorchLinear_0/Dense_0": "modulation/linear",
    "RMSNorm_0/weight": "attention_norm/scale",
    "RMSNorm_1/weight": "feed_forward_norm/scale",
    "Attention_0/TorchLinear_0/Dense_0": "attention/qkv",
    "Attention_0/TorchLinear_1/Dense_0": "attention/out",
    "Attention_0/q_norm/weight": "attention/q_norm/scale",
    "Attention_0/k_norm/weight": "attention/k_norm/scale",
    "SwiGLUFFN_0/TorchLinear_0/Dense_0": "feed_forward/gate",
    "SwiGLUFFN_0/TorchLinear_1/Dense_0": "feed_forward/up",
    "SwiGLUFFN_0/TorchLinear_2/Dense_0": "feed_forward/down",
    "StandardMLP_0/TorchLinear_0/Dense_0": "feed_forward/up",
    "StandardMLP_0/TorchLinear_1/Dense_0": "feed_forward/down",
}
_GENERATOR = {
    "Embed_0/embedding": "class_embedding/embedding",
    "TimestepEmbedder_0/TorchLinear_0/Dense_0": "scale_embedding/hidden",
    "TimestepEmbedder_0/TorchLinear_1/Dense_0": "scale_embedding/out",
    "RMSNorm_0/weight": "scale_embedding/norm/scale",
    "LightningDiT_0/TorchLinear_0/Dense_0": "patch_embedding",
    "LightningDiT_0/TorchLinear_1/Dense_0": "context_projection",
    "LightningDiT_0/pos_embed": "position_embedding",
    "LightningDiT_0/cls_embed": "context_embedding",
    "LightningDiT_0/FinalLayer_0/TorchLinear_0/Dense_0": "final/modulation/linear",
    "LightningDiT_0/FinalLayer_0/TorchLinear_1/Dense_0": "final/output",
    "LightningDiT_0/FinalLayer_0/RMSNorm_0/weight": "final/norm/scale",
}
_DECODER = {"up43": "up_stage3", "up32": "up_stage2", "up21": "up_stage1", "up10": "up_stem"}
_ENCODER_PATTERNS = (
    (r"^fc/", r"classifier/"),
    (r"^encoder/conv1/", r"encoder/stem/conv/"),
    (r"^encoder/gn1/", r"encoder/stem/norm/"),
    (r"^encoder/layer(\d+)_norm/", r"encoder/stage\1_norm/"),
    (r"/conv([12])/kernel$", r"/conv\1/conv/kernel"),
    (r"/gn([12])/", r"/conv\1/norm/"),
    (r"/proj_conv/", r"/shortcut/conv/"),
    (r"/proj_gn/", r"/shortcut/norm/"),
    (r"/concat_norm_fn/", r"/concat_norm/"),
    (r"/proj/gn/", r"/conv1/norm/"),
    (r"/proj/conv/", r"/conv1/conv/"),
    (r"/refine/gn/", r"/conv2/norm/"),
    (r"/refine/conv/", r"/conv2/conv/"),
    (r"/bridge/gn/", r"/bridge/norm/"),
)


def generator_name(path: str) -> str:
    """Our path of a released generator parameter (style books excepted: they are stacked)."""
    block = re.fullmatch(r"LightningDiT_0/blocks_(\d+)/(.*)", path)
    table = _BLOCK if block else _GENERATOR
    prefix, rest = (f"block_{block[1]}/", block[2]) if block else ("", path)
    if rest in table:
        return prefix + table[rest]
    stem, leaf = rest.rsplit("/", 1)
    return f"{prefix}{table[stem]}/{leaf}"


def generator_params(released: dict[str, np.ndarray]) -> dict:
    """Parameters of `DiT` from those of the released generator."""
    is_book = re.compile(r"noise_embeds_(\d+)/embedding")
    books = {int(m[1]): v for k, v in released.items() if (m := is_book.fullmatch(k))}
    flat = {generator_name(k): v for k, v in released.items() if not is_book.fullmatch(k)}
    for name in ("position_embedding", "context_embedding"):
        if name in flat:
            flat[name] = flat[name][0]
    if books:
        flat["style_books"] = np.stack([books[i] for i in range(len(books))])
    return unflatten_dict(flat, sep="/")


def encoder_name(path: str) -> str:
    """Our path of a released masked autoencoder's parameter."""
    stage = re.match(r"encoder/stages_(\d+)/layers_(\d+)/", path)
    if stage:
        block = f"encoder/stage{int(stage[1]) + 1}_block{int(stage[2]) + 1}/"
        path = block + path[stage.end() :]
    up = re.match(r"decoder/(up\d\d)/", path)
    if up:
        path = path.replace(up[1], _DECODER[up[1]], 1)
    for pattern, replacement in _ENCODER_PATTERNS:
        path, count = re.subn(pattern, replacement, path)
        if count:
            break
    return path


def encoder_params(released: dict[str, np.ndarray]) -> dict:
    """Parameters of `ResNetMAE` from those of the released masked autoencoder."""
    return unflatten_dict({encoder_name(k): v for k, v in released.items()}, sep="/")


def map_name(key: str) -> str:
    """Our name of a released feature map: conv1 -> stem, layer2_blk2 -> stage2_block2."""
    if key == "conv1":
        return "stem"
    return key.replace("layer", "stage").replace("blk", "block")
