"""The generator (`DiT`) from a state dict of PyTorch code of the same network.

Sizes are taken from the tensors. A config.json beside the file may have two objects: "fields",
fields of `DiT` that no tensor shows, and "names", our paths of tensors whose names are not known.
"""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from absl import logging
from flax.traverse_util import flatten_dict

from drifting_jax.errors import UserError
from drifting_jax.models.dit import DiT
from drifting_jax.weights import dit_names, own_folders, wrappers
from drifting_jax.weights.mapping import Tensor, assemble
from drifting_jax.weights.shapes import param_shapes

PyTree = Any
Arrays = Mapping[str, np.ndarray]

_HEAD_WIDTH = 64  # of the paper's networks
_CHANNELS = (4, 3)  # of latents and of colour images
_FIELDS = {field.name for field in dataclasses.fields(DiT)} - {"parent", "name", "scan"}
# Arrays with which every size begins, and their axes.
_NEEDED = {
    "patch_embedding/kernel": 2,
    "position_embedding": 2,
    "class_embedding/embedding": 2,
    "final/output/kernel": 2,
}


def is_generator(tensors: Iterable[str]) -> bool:
    """Whether tensors have the names of a generator."""
    return bool(dit_names.prefixes(tensors))


def load(
    tensors: Arrays, config: Mapping[str, Any] | None = None, *, origin: str = "the file"
) -> tuple[DiT, PyTree]:
    """The network and its variables.

    Args:
      tensors: arrays by the names that `dit_names` knows, with any prefix. Of a network and its
        moving average the average is taken.
      config: the object in a config.json beside the file, or None. "fields" may have fields of
        `DiT`, such as {"num_heads": 12}; "names" maps tensors to our paths, such as
        {"their.name": "context_projection/kernel"}, or to null where they are not needed.
      origin: what to call the file in an error.

    Returns:
      The model and {"params": ...} of float32 NumPy arrays.

    Raises:
      UserError: a tensor is missing, not known, not finite or of another shape, or a size is not
        clear; the message says what config.json may say.
    """
    fields = _section(config, "fields")
    if wrong := sorted(set(fields) - _FIELDS):
        raise UserError(f"config.json beside {origin}: a generator has no field {wrong[0]!r}")
    tensors = _one_network(tensors, origin)
    known, unknown = _by_our_paths(tensors, _section(config, "names"), origin)
    arrays = dit_names.join_parts({
        path: _in_our_layout(path, np.asarray(tensors[name])) for path, name in known.items()
    })  # fmt: skip
    _check_needed(arrays, tensors, unknown, origin)
    model = _model(arrays, np.shape(tensors[known["patch_embedding/kernel"]]), fields, origin)
    template = param_shapes(model, tensors=len(tensors))
    ours = {path: tuple(x.shape) for path, x in flatten_dict(template, sep="/").items()}
    unknown += [known.get(path, path) for path in arrays if path not in ours]
    lacking = [path for path in ours if path not in arrays]
    if unknown:
        raise UserError(_of_unknown(unknown, tensors, ours, lacking, origin))
    if lacking:
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise UserError(f"{origin} lacks a tensor for {lacking[0]} {ours[lacking[0]]}{more}")
    for path, shape in ours.items():
        name = known.get(path)
        if arrays[path].shape != shape:
            found = f"{name} {np.shape(tensors[name])}" if name else f"{arrays[path].shape}, joined"
            raise UserError(f"{origin}: {found}, does not give {path} {shape}")
    table = {path: Tensor(path) for path in ours}
    return model, {"params": assemble(template, table, arrays, origin=origin)}


def _section(config: Mapping[str, Any] | None, name: str) -> dict[str, Any]:
    """An object of config.json, which others may use for something else."""
    found = config.get(name) if config else None
    return found if isinstance(found, dict) else {}


def _one_network(tensors: Arrays, origin: str) -> Arrays:
    """The tensors of one network, where the names begin with those of several."""
    prefixes = sorted(dit_names.prefixes(tensors))
    if len(prefixes) < 2:
        return tensors
    first = {prefix.partition(".")[0] for prefix in prefixes}
    if len(first) < len(prefixes):
        listed = ", ".join(map(repr, prefixes[:4]))
        raise UserError(
            f"{origin} holds {len(prefixes)} networks, with the prefixes {listed}: save one alone"
        )
    grouped = {}
    for name, tensor in tensors.items():
        group, dot, rest = name.partition(".")
        grouped[f"{group}/{rest}" if dot and group in first else name] = tensor
    return wrappers.unwrap(wrappers.select(grouped))


def _by_our_paths(
    tensors: Arrays, names: Mapping[str, Any], origin: str
) -> tuple[dict[str, str], list[str]]:
    """{our path: name of its tensor}, and the names that are not known."""
    if wrong := [name for name in names if name not in tensors]:
        raise UserError(f"config.json beside {origin} names {wrong[0]!r}, which is not in the file")
    known: dict[str, str] = {}
    unknown = []
    for name in tensors:
        path = names[name] if name in names else dit_names.our_path(name)
        if name in names and path is None:
            continue
        if not isinstance(path, str):
            unknown.append(name)
        elif path in known:
            raise UserError(f"{origin} holds {known[path]} and {name}, both for {path}")
        else:
            known[path] = name
    return known, unknown


def _in_our_layout(path: str, array: np.ndarray) -> np.ndarray:
    if path.endswith("/kernel") and array.ndim == 4:  # a convolution over patches
        return array.transpose(2, 3, 1, 0).reshape(-1, len(array))
    if path.endswith("/kernel") and array.ndim == 2:
        return array.T
    if path.endswith("_embedding") and array.ndim == 3 and len(array) == 1:
        return array[0]
    return array


def _check_needed(arrays: Arrays, tensors: Arrays, unknown: list[str], origin: str) -> None:
    """Raises UserError if an array is missing without which no size is known."""
    for path, axes in _NEEDED.items():
        if path not in arrays:
            message = f"{origin} lacks a tensor for {path}"
            if unknown:
                name = dit_names.nearest_name(path, unknown)
                message += f"; the nearest of unknown names is {name} {np.shape(tensors[name])}: "
                message += _hint(name, path)
            raise UserError(message)
        if arrays[path].ndim != axes:
            raise UserError(f"{origin}: {path} must have {axes} axes; found {arrays[path].shape}")


def _model(arrays: Arrays, patches: tuple[int, ...], fields: Mapping[str, Any], origin: str) -> DiT:
    """The network with sizes as the tensors and `fields` have them."""
    inputs, width = arrays["patch_embedding/kernel"].shape
    tokens = len(arrays["position_embedding"])
    num_classes, condition_width = arrays["class_embedding/embedding"].shape
    outputs = arrays["final/output/kernel"].shape[1]
    channels = patches[1] if len(patches) == 4 else fields.get("in_channels") or _channels(inputs)
    blocks = [path for path in arrays if path.startswith("block_")]
    books = arrays.get("style_books", np.zeros((0, 0, 0)))
    if not channels or inputs % channels or not blocks or books.ndim != 3:
        raise UserError(
            f"{origin}: the sizes of the generator are not clear; config.json beside it can say "
            f"them: {json.dumps({'fields': {'in_channels': 3}})}"
        )
    patch_size = math.isqrt(inputs // channels)
    gated = "block_0/feed_forward/gate/kernel" in arrays
    up = arrays.get("block_0/feed_forward/up/kernel", np.zeros((width, 4 * width)))
    head = arrays.get("block_0/attention/q_norm/scale")
    shown = {
        "image_size": patch_size * math.isqrt(tokens),
        "in_channels": channels,
        "out_channels": outputs // patch_size**2,
        "patch_size": patch_size,
        "width": width,
        "depth": 1 + max(int(path.partition("/")[0].removeprefix("block_")) for path in blocks),
        "num_classes": num_classes,
        "mlp_ratio": _mlp_ratio(width, up.shape[-1], gated=gated),
        "condition_width": condition_width,
        "num_context_tokens": len(arrays.get("context_embedding", ())),
        "num_style_books": books.shape[0],
        "styles_per_book": books.shape[1],
        "qk_norm": head is not None,
        "swiglu": gated,
        "rms_norm": "block_0/attention_norm/scale" in arrays,
    }
    guessed = {"rope": True, "num_heads": max(width // _HEAD_WIDTH, 1)}
    if head is not None and len(head):
        shown["num_heads"] = width // len(head)
    found = {**guessed, **shown, **{n: own_folders.from_json(n, x) for n, x in fields.items()}}
    if left := [f"{n} {found[n]}" for n in guessed if n not in {*shown, *fields}]:
        logging.warning(
            "%s: no tensor shows %s; the \"fields\" of a config.json beside it can say otherwise",
            origin, ", ".join(left),
        )  # fmt: skip
    return DiT(**found)


def _channels(inputs: int) -> int:
    """Channels of the noise, of whose square patches a linear map takes so many numbers; or 0."""
    square = (c for c in _CHANNELS if not inputs % c and math.isqrt(inputs // c) ** 2 * c == inputs)
    return next(square, 0)


def _mlp_ratio(width: int, hidden: int, *, gated: bool) -> float:
    """The ratio that gives feed-forward networks of this hidden width; see `FeedForward`."""
    if not gated:
        return hidden / width
    usual = -(-int(4 * width * 2 / 3) // 32) * 32
    return 4.0 if hidden == usual else 1.5 * hidden / width


def _of_unknown(
    unknown: list[str],
    tensors: Arrays,
    ours: Mapping[str, tuple[int, ...]],
    lacking: list[str],
    origin: str,
) -> str:
    """A line that names a tensor of an unknown name with the nearest of ours."""
    name = unknown[0]
    shape = np.shape(tensors[name]) if name in tensors else ()
    nearest = dit_names.nearest_path(name, shape, ours, lacking)
    more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
    return (
        f"{origin} holds {name} {shape}{more}, which has no place known; the nearest of ours is "
        f"{nearest} {ours[nearest]}: {_hint(name, nearest)}"
    )


def _hint(name: str, path: str) -> str:
    example = json.dumps({"names": {name: path}}, ensure_ascii=False)
    return f"if it is that, write {example} into config.json beside the file, or null to leave it"
