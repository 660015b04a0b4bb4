"""The table of published networks that serve as frozen encoders of pixels in the loss."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn

from drifting_jax.errors import UserError
from drifting_jax.method import encoders
from drifting_jax.method.encoders import FeatureFunction
from drifting_jax.weights.networks import NETWORKS, Network, load_network


@dataclasses.dataclass(frozen=True)
class Statistics:
    """What the loss takes from the maps of an encoder; see `method.features`.

    Attributes:
      patch_sizes, partial_patches: as in `multiscale_features`.
      joint_scale: whether all statistics of a map are one feature (`joint_features`).
    """

    patch_sizes: tuple[int, ...] = (2, 4)
    partial_patches: bool = False
    joint_scale: bool = False


@dataclasses.dataclass(frozen=True)
class PixelEncoder:
    """How a network serves as an encoder of images in [-1, 1].

    Attributes:
      network: its kind in `NETWORKS`.
      features: (module, statistics) -> its feature function.
      shown: fields of the module that say how it is shown images.
      sizes: fields that tell networks of one kind apart; its file must have them. Those of the
        module where they are empty.
    """

    network: str
    features: Callable[[Any, Statistics], FeatureFunction]
    shown: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    sizes: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def published(self) -> nn.Module:
        """The network as it is published, without its weights."""
        return NETWORKS[self.network].module(**self.sizes)

    def load(self, name: str | Path) -> Network[nn.Module]:
        """Reads the network; arguments and errors as in `load_network`.

        Raises:
          UserError: also where it has other sizes than `sizes`.
        """
        found = load_network(name, kind=self.network)
        there = {field: getattr(found.model, field) for field in self.sizes}
        if there != self.sizes:
            words = [
                ", ".join(f"{field} {size}" for field, size in sizes.items())
                for sizes in (self.sizes, there)
            ]
            raise UserError(
                f"{name} holds another {self.network}: expected {words[0]}; found {words[1]}"
            )
        return found


def _of_maps(model: nn.Module, statistics: Statistics) -> FeatureFunction:
    found = encoders.map_features(
        model,
        patch_sizes=statistics.patch_sizes,
        partial_patches=statistics.partial_patches,
    )
    return encoders.with_joint_scale(found) if statistics.joint_scale else found


def _of_convnext(model: Any, statistics: Statistics) -> FeatureFunction:
    if statistics.joint_scale:
        joined = encoders.convnext_features(model, repeat_last_std=False)
        return encoders.with_joint_scale(joined)
    return encoders.convnext_features(model)


def _vit(width: int, depth: int, num_heads: int) -> PixelEncoder:
    sizes = {"width": width, "depth": depth, "num_heads": num_heads}
    return PixelEncoder("dinov2", _of_maps, {"image_size": 224}, sizes)


# What config.extra_encoder.kind may be, besides "none".
ENCODERS: dict[str, PixelEncoder] = {
    "convnext": PixelEncoder("convnext", _of_convnext),
    "resnet": PixelEncoder("resnet", _of_maps, {"image_size": 224}),
    "simclr": PixelEncoder("resnet", _of_maps, {"image_size": 224, "normalize": False}),
    "dinov2": PixelEncoder("dinov2", _of_maps, {"image_size": 224}),
    "dinov2_s": _vit(384, 12, 6),
    "dinov2_b": _vit(768, 12, 12),
    "dinov2_l": _vit(1024, 24, 16),
}
