"""Names that PyTorch code gives the tensors of a generator (`DiT`), and our paths for them.

They are those of DiT's and timm's modules, of common SwiGLU and attention modules, and of the
paper's release spelled as modules of torch. Whatever precedes them ("module.", "generator.") does
not count.
"""

import difflib
import re
from collections.abc import Collection, Iterable, Mapping

import numpy as np

_EMBEDDER = r"_?(?:embed(?:der|ding)?s?|emb)"
_SCALE = r"(?:t|time|timestep|cfg|cfg_scale|scale|alpha|guidance|guidance_scale)"
_ATTENTION = r"(?:attn|attention|self_attn)"
_NETWORK = r"(?:mlp|ffn|ff|feed_forward)"
# A layer's name there -> ours.
_LAYERS = {
    rf"(?:y|label|class){_EMBEDDER}(?:\.embedding_table|\.embedding)?": "class_embedding",
    rf"{_SCALE}{_EMBEDDER}\.(?:mlp\.0|linear_1|fc1)": "scale_embedding/hidden",
    rf"{_SCALE}{_EMBEDDER}\.(?:mlp\.2|linear_2|fc2)": "scale_embedding/out",
    rf"{_SCALE}(?:{_EMBEDDER}[._]|_)norm": "scale_embedding/norm",
    rf"(?:x|patch){_EMBEDDER}(?:\.proj)?": "patch_embedding",
    r"(?:cls|context)_?proj(?:ection)?": "context_projection",
    r"final(?:_layer)?\.adaLN_modulation\.1": "final/modulation/linear",
    r"final(?:_layer)?\.(?:linear|proj|output)": "final/output",
    r"final(?:_layer)?\.norm(?:_final)?": "final/norm",
}
# The same of a block, after "blocks.3.".
_BLOCK = {
    r"adaLN_modulation\.1": "modulation/linear",
    r"norm1|attn_norm|attention_norm": "attention_norm",
    r"norm2|ffn_norm|mlp_norm": "feed_forward_norm",
    rf"{_ATTENTION}\.(?:qkv|to_qkv|in_proj)": "attention/qkv",
    rf"{_ATTENTION}\.(?:q|to_q|q_proj|wq)": "attention/query",
    rf"{_ATTENTION}\.(?:k|to_k|k_proj|wk)": "attention/key",
    rf"{_ATTENTION}\.(?:v|to_v|v_proj|wv)": "attention/value",
    rf"{_ATTENTION}\.(?:proj|out|to_out(?:\.0)?|out_proj|o_proj|wo)": "attention/out",
    rf"{_ATTENTION}\.(?:q_norm|norm_q)": "attention/q_norm",
    rf"{_ATTENTION}\.(?:k_norm|norm_k)": "attention/k_norm",
    rf"{_NETWORK}\.w12": "feed_forward/gate_and_up",
    rf"{_NETWORK}\.(?:gate_proj|gate|fc1_g)": "feed_forward/gate",
    rf"{_NETWORK}\.(?:up_proj|up|fc1_x|fc1|net\.0\.proj|0)": "feed_forward/up",
    rf"{_NETWORK}\.(?:down_proj|down|fc2|net\.2|2)": "feed_forward/down",
    rf"{_NETWORK}\.(w[123])": r"feed_forward/\1",
}
# Arrays that are no layer's.
_ARRAYS = {
    r"pos_embed(?:ding)?": "position_embedding",
    r"(?:cls|context)_(?:embed(?:ding)?|tokens?)": "context_embedding",
    r"(?:noise|style)_?(?:embed(?:ding)?s?|books)(?:\.weight)?": "style_books",
    r"(?:noise|style)_?(?:embed(?:ding)?s?|books)\.(\d+)(?:\.weight)?": r"style_books/\1",
}
# Those of the SwiGLU networks w1, w2, w3: which of them are gate, up and down.
_UP_LAST, _DOWN_LAST = ("gate", "down", "up"), ("gate", "up", "down")  # of Llama, of xFormers
_OF_A_GENERATOR = re.compile(r"(.*?)blocks\.0\.adaLN_modulation\.1\.weight")


def prefixes(names: Iterable[str]) -> set[str]:
    """What precedes the name of the first block's modulation, by which a generator is known."""
    return {found[1] for name in names if (found := _OF_A_GENERATOR.fullmatch(name))}


def our_path(name: str) -> str | None:
    """Our path of a tensor, or of a part of ours (`join_parts`); None where it is not known."""
    for pattern, path in _ARRAYS.items():
        if found := re.fullmatch(rf"(?:.*\.)?{pattern}", name):
            return found.expand(path)
    layer, _, leaf = name.replace("in_proj_", "in_proj.").rpartition(".")
    if leaf not in ("weight", "bias"):
        return None
    if block := re.fullmatch(r"(?:.*\.)?blocks\.(\d+)\.(.*)", layer):
        table, inner, before = _BLOCK, block[2], f"block_{block[1]}/"
    else:
        table, inner, before = _LAYERS, layer, ""
    for pattern, path in table.items():
        # Before a layer outside of the blocks stands any prefix.
        if found := re.fullmatch(pattern if before else rf"(?:.*\.)?(?:{pattern})", inner):
            ours = found.expand(path)
            return f"{before}{ours}/{_leaf(ours, leaf)}"
    return None


def _leaf(layer: str, leaf: str) -> str:
    if leaf == "bias":
        return leaf
    if layer.endswith("norm"):
        return "scale"
    return "embedding" if layer == "class_embedding" else "kernel"


def join_parts(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Joins and splits what others keep in more or fewer tensors than we do.

    Queries, keys and values become one; a gate with its partner two; style books one array; and
    the three matrices w1, w2, w3 are told apart by their shapes.

    Args:
      arrays: by the paths of `our_path`, in our layout. Those without a partner are kept.
    """
    found = dict(arrays)
    for path in sorted(arrays):
        layer, _, leaf = path.rpartition("/")
        block, _, inner = layer.rpartition("/")
        if inner == "query":
            parts = [f"{block}/{name}/{leaf}" for name in ("query", "key", "value")]
            if set(parts) <= found.keys() and len({found[x].shape[:-1] for x in parts}) == 1:
                found[f"{block}/qkv/{leaf}"] = np.concatenate([found.pop(x) for x in parts], -1)
        elif inner == "gate_and_up" and not found[path].shape[-1] % 2:
            gate, up = np.split(found.pop(path), 2, -1)
            found |= {f"{block}/gate/{leaf}": gate, f"{block}/up/{leaf}": up}
            if f"{block}/w3/{leaf}" in found:
                found[f"{block}/down/{leaf}"] = found.pop(f"{block}/w3/{leaf}")
        elif inner == "w1" and leaf == "kernel":
            names = [f"{block}/w{i}" for i in (1, 2, 3)]
            if {f"{name}/kernel" for name in names} <= found.keys():
                last = found[f"{names[2]}/kernel"].shape == found[path].shape
                for name, ours in zip(names, _UP_LAST if last else _DOWN_LAST, strict=True):
                    for x in ("kernel", "bias"):
                        if f"{name}/{x}" in found:
                            found[f"{block}/{ours}/{x}"] = found.pop(f"{name}/{x}")
    books = [f"style_books/{i}" for i in range(len(found))]
    books = [path for path in books if path in found]
    if books and len({found[path].shape for path in books}) == 1:
        found["style_books"] = np.stack([found.pop(path) for path in books])
    return found


def nearest_path(
    name: str, shape: tuple[int, ...], ours: Mapping[str, tuple[int, ...]], lacking: Collection[str]
) -> str:
    """The path of ours that a tensor of another name may be: it is lacking, and has its shape.

    Args:
      name, shape: of the tensor.
      ours: shapes by path.
      lacking: the paths that no tensor was found for; where there are none, all count.
    """

    def fits(path: str) -> tuple[bool, float]:
        sizes = sorted(n for n in ours[path] if n > 1)
        same = sizes == sorted(n for n in shape if n > 1)
        return same, _likeness(name, path)

    return max(lacking or ours, key=fits)


def nearest_name(path: str, names: Collection[str]) -> str:
    """The name that is most like a path of ours."""
    return max(names, key=lambda name: _likeness(name, path))


def _likeness(name: str, path: str) -> float:
    return difflib.SequenceMatcher(None, name.replace(".", "/"), path).ratio()
