"""Features of frozen encoders: functions (variables, images [b,h,w,c]) -> {name: [b,t,d]}.

The variables are an argument, not a constant; gradients flow to the images only (3.4, A.4).
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from drifting_jax.method import features
from drifting_jax.models.calls import apply_variables
from drifting_jax.models.convnext import ConvNeXtV2
from drifting_jax.models.resnet_mae import ResNetMAE
from drifting_jax.models.vae import VAE

PyTree = Any


@dataclasses.dataclass(frozen=True)
class FeatureFunction:
    """Features of frozen networks: (variables, images [b, h, w, c]) -> {name: [b, t, d]}.

    They come in two parts, so that a step can keep the maps of many samples and compute their
    features when it needs them.

    Attributes:
      maps: (variables, images [b, h, w, c]) -> tree of arrays [b, ...]: the work of the networks.
      features: maps -> {name: [b, t, d]}: statistics of the maps, which take no parameters.
    """

    maps: Callable[[PyTree, jax.Array], PyTree]
    features: Callable[[PyTree], dict[str, jax.Array]]

    def __call__(self, variables: PyTree, images: jax.Array) -> dict[str, jax.Array]:
        return self.features(self.maps(variables, images))


def autoencoder_features(
    model: ResNetMAE,
    *,
    patch_sizes: Sequence[int] = (2, 4),
    partial_patches: bool = False,
    input_rms: bool = True,
) -> FeatureFunction:
    """Features of the masked autoencoder (A.5).

    Args:
      model: of images in [-1, 1] or of latents, as it was trained.
      patch_sizes, partial_patches: as in `features.multiscale_features`.
      input_rms: whether the per-channel root mean square of the patchified input is a feature.
    """

    def maps(variables: PyTree, images: jax.Array) -> dict[str, jax.Array]:
        found = _feature_maps(model, variables, images)
        if not input_rms:
            del found["input"]
        return found

    return dataclasses.replace(
        map_features(model, patch_sizes=patch_sizes, partial_patches=partial_patches), maps=maps
    )


def last_stage_means(model: ResNetMAE, variables: PyTree, images: jax.Array) -> jax.Array:
    """Returns [b, d] float32: the mean of each channel of the autoencoder's last stage."""
    maps = _feature_maps(model, variables, images)
    return features.global_mean_and_std(maps[f"stage{len(model.blocks)}"])[0][:, 0]


def convnext_features(model: ConvNeXtV2, *, repeat_last_std: bool = True) -> FeatureFunction:
    """Features of ConvNeXt-V2 that the paper's pixel generators were trained with.

    They are the means and stds of all stages, the locations of all stages but the first (its 3,136
    locations would cost more than all others), and the pooled output. `last/std` repeats the std of
    the last stage, which counts twice in the release, unless `repeat_last_std` is off.
    """
    last = f"stage{len(model.depths)}"

    def maps(variables: PyTree, images: jax.Array) -> dict[str, jax.Array]:
        found = _feature_maps(model, variables, images)
        statistics = features.multiscale_features({"stage1": found.pop("stage1")}, patch_sizes=())
        del statistics["stage1"]
        return found | statistics

    def of_maps(maps: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        stages = dict(maps)
        found = {"pooled": features.location_features(stages.pop("pooled"))}
        found |= {name: stages.pop(name) for name in maps if name.startswith("stage1/")}
        found |= features.multiscale_features(stages, patch_sizes=())
        if repeat_last_std and f"{last}/std" in found:
            found["last/std"] = found[f"{last}/std"]
        return found

    return FeatureFunction(maps, of_maps)


def sample_rms() -> FeatureFunction:
    """The root mean square of each channel of the sample itself, as {"input/rms": [b, 1, c]}."""
    return FeatureFunction(
        maps=lambda _, images: {"input": images}, features=features.multiscale_features
    )


def map_features(
    model: nn.Module, *, patch_sizes: Sequence[int] = (2, 4), partial_patches: bool = False
) -> FeatureFunction:
    """Locations, means and stds of the maps that `feature_maps` of a network gives.

    Args:
      model: of images in [-1, 1].
      patch_sizes, partial_patches: as in `features.multiscale_features`.
    """
    return FeatureFunction(
        maps=functools.partial(_feature_maps, model),
        features=functools.partial(
            features.multiscale_features, patch_sizes=patch_sizes, partial_patches=partial_patches
        ),
    )


def _feature_maps(model: nn.Module, variables: PyTree, images: jax.Array) -> dict[str, jax.Array]:
    return apply_variables(model, variables, images, method="feature_maps")


def through_decoder(vae: VAE, feature_function: FeatureFunction) -> FeatureFunction:
    """Features of the images that latents decode to; gradients flow through both networks (A.4).

    The function takes the variables {"vae": …, "encoder": …} and scaled latents [b, h, w, 4].
    """

    def maps(variables: PyTree, latents: jax.Array) -> PyTree:
        images = apply_variables(vae, variables["vae"], latents, method=VAE.decode_scaled)
        return feature_function.maps(variables["encoder"], images)

    return dataclasses.replace(feature_function, maps=maps)


def in_colours(feature_function: FeatureFunction) -> FeatureFunction:
    """The same features; images [b, h, w, 1] are shown as [b, h, w, 3] of three equal channels."""

    def maps(variables: PyTree, images: jax.Array) -> PyTree:
        if images.shape[-1] == 1:
            images = jnp.broadcast_to(images, (*images.shape[:-1], 3))
        return feature_function.maps(variables, images)

    return dataclasses.replace(feature_function, maps=maps)


def compose(functions: Mapping[str, FeatureFunction], *, prefixed: bool = True) -> FeatureFunction:
    """All features of several encoders of the same images.

    Args:
      functions: {name: feature function}. The result takes the variables {name: …} and calls the
        features "name/feature", or just "feature" where the name is empty.
      prefixed: if false, all features keep their names.

    Raises:
      ValueError: two encoders give a feature of the same name; raised when the function is called.
    """

    def maps(variables: PyTree, images: jax.Array) -> dict[str, PyTree]:
        return {
            prefix: function.maps(variables.get(prefix), images)
            for prefix, function in functions.items()
        }

    def of_maps(maps: Mapping[str, PyTree]) -> dict[str, jax.Array]:
        found: dict[str, jax.Array] = {}
        for prefix, function in functions.items():
            new = function.features(maps[prefix])
            start = f"{prefix}/" if prefix and prefixed else ""
            named = {f"{start}{name}": x for name, x in new.items()}
            if both := sorted(named.keys() & found.keys()):
                raise ValueError(f"two encoders give a feature called {both[0]!r}: name them apart")
            found |= named
        return found

    return FeatureFunction(maps, of_maps)


def with_joint_scale(feature_function: FeatureFunction) -> FeatureFunction:
    """The same features, those of each map joined (`features.joint_features`)."""

    def of_maps(maps: PyTree) -> dict[str, jax.Array]:
        return features.joint_features(feature_function.features(maps))

    return dataclasses.replace(feature_function, features=of_maps)


def with_raw(feature_function: FeatureFunction) -> FeatureFunction:
    """The same features and `features.raw_features`: the sample itself as one vector."""

    def maps(variables: PyTree, images: jax.Array) -> tuple[PyTree, jax.Array]:
        return feature_function.maps(variables, images), images

    def of_maps(maps: tuple[PyTree, jax.Array]) -> dict[str, jax.Array]:
        of_encoders, images = maps
        return feature_function.features(of_encoders) | features.raw_features(images)

    return FeatureFunction(maps, of_maps)
