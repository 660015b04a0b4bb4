"""ResNet-50 and other sizes, with torchvision's names, which MoCo and SimCLR use too.

PyTorch's files of SimCLRv2 have names of their own, for the sizes without selective kernels.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from drifting_jax.errors import UserError
from drifting_jax.models.resnet import ResNet
from drifting_jax.weights.mapping import PyTree, Tensor, assemble
from drifting_jax.weights.shapes import param_shapes

_PART = r"conv1|bn1|layer\d+\.\d+\.(?:conv\d|bn\d|downsample\.\d)"
_NAME = re.compile(rf"((?:.*?[./])??)(?:{_PART})\.\w+")
# That no other network has; the second is SimCLRv2's.
TENSOR_NAMES = ("layer4.0.conv3.weight", "net.4.blocks.0.net.4.weight")

# Name of a tensor of SimCLRv2 -> torchvision's name. A block has three convolutions, and each is
# followed by its norm.
_SIMCLR_V2 = (
    (r"net\.0\.0\.(\w+)", r"conv1.\1"),
    (r"net\.0\.1\.0\.(\w+)", r"bn1.\1"),
    *(
        (rf"net\.(\d)\.blocks\.(\d+)\.net\.{2 * i}\.(\w+)", rf"layer\1.\2.conv{i + 1}.\3")
        for i in range(3)
    ),
    *(
        (rf"net\.(\d)\.blocks\.(\d+)\.net\.{2 * i + 1}\.0\.(\w+)", rf"layer\1.\2.bn{i + 1}.\3")
        for i in range(3)
    ),
    (r"net\.(\d)\.blocks\.(\d+)\.projection\.shortcut\.(\w+)", r"layer\1.\2.downsample.0.\3"),
    (r"net\.(\d)\.blocks\.(\d+)\.projection\.bn\.0\.(\w+)", r"layer\1.\2.downsample.1.\3"),
)

# The trained encoder of MoCo-v1 and v2, and of MoCo-v3, beside its moving average.
_TRAINED = ("encoder_q.", "base_encoder.")
_BLOCK = re.compile(r"layer(\d+)\.(\d+)\..*")

# Tensors that are not needed: a counter of each norm, and heads trained on top of the pooled map.
_COUNTER = r".*\.num_batches_tracked"
_HEAD = r"(fc|head|projector|projection_head|prototypes)\..*"


def table(model: ResNet, prefix: str = "") -> dict[str, Tensor]:
    """{path under "params": its tensor in a file with `prefix` before torchvision's names}."""
    entries = _conv_norm("trunk/stem", f"{prefix}conv1", f"{prefix}bn1")
    for i, depth in enumerate(model.blocks, start=1):
        for j in range(depth):
            ours, theirs = f"trunk/stage{i}_block{j + 1}", f"{prefix}layer{i}.{j}"
            for k in (1, 2, 3):
                entries |= _conv_norm(f"{ours}/conv{k}", f"{theirs}.conv{k}", f"{theirs}.bn{k}")
            if j == 0:
                shortcut = f"{theirs}.downsample"
                entries |= _conv_norm(f"{ours}/shortcut", f"{shortcut}.0", f"{shortcut}.1")
    if model.num_classes:
        entries["classifier/kernel"] = Tensor(f"{prefix}fc.weight", "linear")
        entries["classifier/bias"] = Tensor(f"{prefix}fc.bias")
    return entries


def load(
    tensors: Mapping[str, np.ndarray],
    *,
    classifier: bool = False,
    prefix: str | None = None,
    dtype: DTypeLike = jnp.float32,
    origin: str = "the file",
) -> tuple[ResNet, PyTree]:
    """The network, with sizes taken from the tensors, and its variables.

    Torchvision's names may have a prefix ("module.", "backbone.", "encoder.", ...). Tensors with
    another prefix (a projection, a queue, an optimizer) are ignored. Of MoCo's two encoders this
    takes the trained one, "encoder_q." or "base_encoder.".

    Args:
      tensors: arrays by name.
      classifier: whether to take `fc.weight` and `fc.bias`; if not, heads are ignored.
      prefix: what precedes torchvision's names; None to find it.
      dtype: compute dtype.
      origin: what to call the file in an error.

    Returns:
      The model and {"params": ...} of float32 NumPy arrays. `model.clone(image_size=..., ...)`
      changes fields that no shape depends on.

    Raises:
      UserError: there is not exactly one such network, or one of its tensors is missing, has
        another shape or is left over.
    """
    tensors = _with_torchvision_names(tensors)
    if prefix is None:
        prefix = _find_prefix(tensors, origin)
    tensors = {name: array for name, array in tensors.items() if name.startswith(prefix)}
    model = ResNet(
        width=_rows(tensors, f"{prefix}conv1.weight", 4, origin),
        blocks=_blocks(name.removeprefix(prefix) for name in tensors),
        num_classes=_rows(tensors, f"{prefix}fc.weight", 2, origin) if classifier else 0,
        dtype=dtype,
    )
    patterns = (_COUNTER,) if classifier else (_COUNTER, _HEAD)
    ignored = [re.escape(prefix) + pattern for pattern in patterns]
    params = assemble(
        param_shapes(model, tensors=len(tensors)),
        table(model, prefix),
        tensors,
        ignored=ignored,
        origin=origin,
    )
    return model, {"params": params}


def _with_torchvision_names(tensors: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """The tensors of SimCLRv2's network by torchvision's names; those of others as they are."""
    end = TENSOR_NAMES[1]
    starts = [name.removesuffix(end) for name in tensors if name.endswith(end)]
    if len(starts) != 1:
        return tensors
    inner = {
        name.removeprefix(starts[0]): array
        for name, array in tensors.items()
        if name.startswith(starts[0])
    }
    return {_renamed(name): array for name, array in inner.items()}


def _renamed(name: str) -> str:
    for pattern, replacement in _SIMCLR_V2:
        if match := re.fullmatch(pattern, name):
            return match.expand(replacement)
    return name


def _find_prefix(names: Iterable[str], origin: str) -> str:
    prefixes = {match[1] for name in names if (match := _NAME.fullmatch(name))}
    trained = {prefix for prefix in prefixes if prefix.endswith(_TRAINED)}
    found = sorted(trained or prefixes)
    if not found:
        raise UserError(
            f"{origin} holds no ResNet: no tensor is called conv1.weight, layer1.0.conv1.weight, "
            "..., with or without a prefix"
        )
    if len(found) > 1:
        raise UserError(
            f"{origin} holds {len(found)} networks, with the prefixes "
            f"{', '.join(map(repr, found[:4]))}: save the tensors of one alone"
        )
    return found[0]


def _rows(tensors: Mapping[str, np.ndarray], name: str, rank: int, origin: str) -> int:
    """The first size of a tensor, which must have `rank` axes."""
    if name not in tensors:
        raise UserError(f"{origin} lacks {name}")
    shape = np.shape(tensors[name])
    if len(shape) != rank:
        raise UserError(f"{name} of {origin} must have {rank} axes, found the shape {shape}")
    return shape[0]


def _blocks(names: Iterable[str]) -> tuple[int, ...]:
    """Blocks of each stage: at least one in each of four stages, so that missing ones are found."""
    depths = dict.fromkeys(range(1, 5), 1)
    for name in names:
        if match := _BLOCK.fullmatch(name):
            stage, block = int(match[1]), int(match[2])
            depths[stage] = max(depths.get(stage, 1), block + 1)
    return tuple(depths.get(stage, 1) for stage in range(1, max(depths) + 1))


def _conv_norm(ours: str, conv: str, norm: str) -> dict[str, Tensor]:
    return {
        f"{ours}/conv/kernel": Tensor(f"{conv}.weight", "conv"),
        f"{ours}/norm/scale": Tensor(f"{norm}.weight"),
        f"{ours}/norm/bias": Tensor(f"{norm}.bias"),
        f"{ours}/norm/mean": Tensor(f"{norm}.running_mean"),
        f"{ours}/norm/variance": Tensor(f"{norm}.running_var"),
    }
