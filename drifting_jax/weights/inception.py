"""Inception-v3 of the Fréchet Inception distance, from pytorch-fid or torch-fidelity."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from flax.traverse_util import flatten_dict

from drifting_jax.models.inception import InceptionV3
from drifting_jax.weights.mapping import PyTree, Tensor, assemble
from drifting_jax.weights.shapes import param_shapes
from drifting_jax.weights.wrappers import without_prefix

# Our name of an array of a convolution with its norm -> its tensor in a file.
_TENSORS = {
    "kernel": Tensor("conv.weight", "conv"),
    "scale": Tensor("bn.weight"),
    "bias": Tensor("bn.bias"),
    "mean": Tensor("bn.running_mean"),
    "variance": Tensor("bn.running_var"),
}
TENSOR_NAMES = ("Mixed_7c.branch3x3dbl_3b.conv.weight",)  # that no other network has
# Tensors that only training needs: a counter of each norm, and a classifier in the middle.
_IGNORED = (r".*\.num_batches_tracked", r"AuxLogits\..*")


def table(template: PyTree) -> dict[str, Tensor]:
    """{path under "params": its tensor in a file}, for the paths of a tree of parameters."""
    entries = {"fc_kernel": Tensor("fc.weight", "linear"), "fc_bias": Tensor("fc.bias")}
    for path in flatten_dict(template):
        if len(path) > 1:
            tensor = _TENSORS[path[-1]]
            name = ".".join((*path[:-1], tensor.name))
            entries["/".join(path)] = Tensor(name, tensor.layout)
    return entries


def load(
    tensors: Mapping[str, np.ndarray], *, origin: str = "the file"
) -> tuple[InceptionV3, PyTree]:
    """The network and its variables.

    Args:
      tensors: arrays by name, of `pt_inception-2015-12-05-6726825d.pth` (pytorch-fid) or of
        `weights-inception-2015-12-05-6726825d.pth` (torch-fidelity).
      origin: what to call the file in an error.

    Returns:
      The model and {"params": ...} of float32 NumPy arrays.

    Raises:
      UserError: a tensor is missing, has another shape or is left over.
    """
    tensors = without_prefix(tensors, TENSOR_NAMES, origin=origin)
    model = InceptionV3()
    template = param_shapes(model)
    params = assemble(template, table(template), tensors, ignored=_IGNORED, origin=origin)
    return model, {"params": params}
