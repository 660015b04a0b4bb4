"""Frozen networks that turn images into the features that published metrics compare."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from drifting_jax.digests import digest_file, digest_params
from drifting_jax.errors import UserError
from drifting_jax.evaluation.features.resize import pil_bicubic, tf_bilinear
from drifting_jax.files import expanded
from drifting_jax.models.calls import apply_variables
from drifting_jax.models.pixels import imagenet_input
from drifting_jax.weights.networks import Network, load_network

PyTree = Any

_DINOV2_SIDE = 224
# The usual file names of each network's weights; the address has the first one.
_FILES = {
    "inception": (
        "weights-inception-2015-12-05-6726825d.pth",
        "pt_inception-2015-12-05-6726825d.pth",
    ),
    "dinov2": ("dinov2_vitl14_pretrain.pth",),
}
_ADDRESSES = {
    "inception": "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/",
    "dinov2": "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/",
}


# Compared and hashed by identity, as it holds arrays and is a static argument of jitted functions.
@dataclasses.dataclass(frozen=True, eq=False)
class Extractor:
    """A frozen network that turns uint8 images into features for a metric.

    Attributes:
      name: "inception" or "dinov2".
      num_features: d.
      digest: hex SHA-256 of the weights: names, dtypes, shapes and bytes of all parameters.
      resize: words for the protocol: how images become the network's size.
      variables: what `apply` takes first; NumPy float32.
      apply: (variables, images [b, h, w, 3] or [b, h, w, 1] uint8) -> {"features": [b, d] float32};
        Inception also gives "logits" [b, 1008], without the bias, and "spatial" [b, 2023]. The
        caller jits it. Raises ValueError for images of another shape or dtype.
      warning: why the weights may not be the published ones, or "".
    """

    name: str
    num_features: int
    digest: str
    resize: str
    variables: PyTree
    apply: Callable[[PyTree, jax.Array], dict[str, jax.Array]]
    warning: str = ""


def load_extractor(name: str, weights: str = "", *, flag: str = "--weights") -> Extractor:
    """Loads an extractor with its published weights.

    Args:
      name: "inception" (FID, sFID, Inception score) or "dinov2" (FD-DINOv2, of ViT-L/14).
      weights: file, folder or hf://owner/repo; "" to look for the published file in the folder
        that the environment variable DRIFTING_JAX_WEIGHTS names, or without it in
        ~/.cache/drifting_jax/weights.
      flag: of the command, which gives `weights`; named in the error.

    Raises:
      UserError: there is no such extractor; the weights are missing (the message says where to get
        them), damaged or of another network.
    """
    if name not in _FILES:
        raise UserError(f"the extractors are {', '.join(_FILES)}; found {name!r}")
    path = expanded(weights) or _find(name, flag)
    network = load_network(path, kind=name)
    found = inception_extractor(network) if name == "inception" else dinov2_extractor(network)
    return dataclasses.replace(found, warning=_weights_warning(name, Path(path)))


def _find(name: str, flag: str) -> Path:
    """The path of the published file on this machine."""
    folder = Path(
        expanded(os.environ.get("DRIFTING_JAX_WEIGHTS") or "~/.cache/drifting_jax/weights")
    )
    for file in _FILES[name]:
        if (folder / file).is_file():
            return folder / file
    raise UserError(
        f"there is no {' or '.join(_FILES[name])} in {folder}: download "
        f"{_ADDRESSES[name]}{_FILES[name][0]} into that folder, or give the file with {flag}"
    )


def _weights_warning(name: str, path: Path) -> str:
    """A warning if a file has a published name, which ends in its SHA-256, but other contents."""
    published = re.search(r"-([0-9a-f]{8})\.pth$", path.name)
    if path.name not in _FILES[name] or not published or not path.is_file():
        return ""
    found = digest_file(path, digits=8)
    if found == published[1]:
        return ""
    return (
        f"{path} is not the published file: its SHA-256 begins with {found}, not {published[1]}; "
        "compare metrics only with those of this file"
    )


def inception_extractor(network: Network) -> Extractor:
    """Inception-v3 as FID, sFID and the Inception score use it: 2048 features of the last pool.

    Args:
      network: of the kind "inception".

    Raises:
      ValueError: the network is another.
    """
    _check_kind(network, "inception")

    def apply(variables: PyTree, images: jax.Array) -> dict[str, jax.Array]:
        pixels = (tf_bilinear(_as_rgb(images)) - 128.0) / 128.0
        found = apply_variables(network.model, variables, pixels)
        return {
            "features": found["2048"],
            "logits": found["logits_unbiased"],
            "spatial": found["spatial"],
        }

    return Extractor(
        name="inception",
        num_features=2048,
        digest=digest_params(network.variables["params"]),
        resize="TF1 bilinear to 299x299, not rounded",
        variables=network.variables,
        apply=apply,
    )


def dinov2_extractor(network: Network) -> Extractor:
    """DINOv2 as FD-DINOv2 uses it: the class token after the final norm, of images of 224x224.

    It is computed in float32, with positions interpolated as torch.hub's code does, for weights
    from any file: features depend on the weights alone.

    Args:
      network: of the kind "dinov2", of any size; the published metric has ViT-L/14.

    Raises:
      ValueError: the network is another.
    """
    _check_kind(network, "dinov2")
    model = network.model.clone(position_offset=0.1, dtype=jnp.float32)

    def apply(variables: PyTree, images: jax.Array) -> dict[str, jax.Array]:
        resized = pil_bicubic(_as_rgb(images), _DINOV2_SIDE).astype(jnp.float32)
        pixels = imagenet_input(resized / 127.5 - 1.0, None, "bicubic")
        return {"features": apply_variables(model, variables, pixels)[0]}

    return Extractor(
        name="dinov2",
        num_features=model.width,
        digest=digest_params(network.variables["params"]),
        resize=f"Pillow's bicubic to {_DINOV2_SIDE}x{_DINOV2_SIDE}, rounded to 8 bits",
        variables=network.variables,
        apply=apply,
    )


def _check_kind(network: Network, kind: str) -> None:
    if network.kind != kind:
        raise ValueError(f"expected a network of the kind {kind!r}, found {network.kind!r}")


def _as_rgb(images: jax.Array) -> jax.Array:
    """Images [b, h, w, 3] uint8 of colour images, or of grey ones [b, h, w, 1]."""
    if images.dtype != jnp.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(
            f"expected uint8 images [b, h, w, 3] or [b, h, w, 1], found {images.shape} of "
            f"{images.dtype}"
        )
    return jnp.broadcast_to(images, (*images.shape[:-1], 3))
