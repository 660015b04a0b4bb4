"""Features of frozen encoders: functions (variables, images [b,h,w,c]) -> {name: [b,t,d]}.

The variables are an argument, not a constant; gradients flow to the images only (3.4, A.4).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax

from drifting_jax.method import features
from drifting_jax.models.calls import apply_variables
from drifting_jax.models.convnext import ConvNeXtV2
from drifting_jax.models.resnet_mae import ResNetMAE
from drifting_jax.models.vae import VAE

PyTree = Any
FeatureFunction = Callable[[PyTree, jax.Array], dict[str, jax.Array]]


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

    def feature_function(variables: PyTree, images: jax.Array) -> dict[str, jax.Array]:
        maps = _feature_maps(model, variables, images)
        if not input_rms:
            del maps["input"]
        return features.multiscale_features(
            maps, patch_sizes=patch_sizes, partial_patches=partial_patches
        )

    return feature_function


def convnext_features(model: ConvNeXtV2) -> FeatureFunction:
    """Features of ConvNeXt-V2 that the paper's pixel generators were trained with.

    They are the means and stds of all stages, the locations of all stages but the first (its 3,136
    locations would cost more than all others), and the pooled output. `last/std` repeats the std of
    the last stage, which counts twice in the release.
    """
    last = f"stage{len(model.depths)}"

    def feature_function(variables: PyTree, images: jax.Array) -> dict[str, jax.Array]:
        maps = _feature_maps(model, variables, images)
        pooled = features.location_features(maps.pop("pooled"))
        found = features.multiscale_features(maps, patch_sizes=())
        del found["stage1"]
        found["pooled"] = pooled
        if f"{last}/std" in found:
            found["last/std"] = found[f"{last}/std"]
        return found

    return feature_function


def map_features(
    model: nn.Module, *, patch_sizes: Sequence[int] = (2, 4), partial_patches: bool = False
) -> FeatureFunction:
    """Locations, means and stds of the maps that `feature_maps` of a network gives.

    Args:
      model: of images in [-1, 1].
      patch_sizes, partial_patches: as in `features.multiscale_features`.
    """

    def feature_function(variables: PyTree, images: jax.Array) -> dict[str, jax.Array]:
        maps = _feature_maps(model, variables, images)
        return features.multiscale_features(
            maps, patch_sizes=patch_sizes, partial_patches=partial_patches
        )

    return feature_function


def _feature_maps(model: nn.Module, variables: PyTree, images: jax.Array) -> dict[str, jax.Array]:
    return apply_variables(model, variables, images, method="feature_maps")


def through_decoder(vae: VAE, feature_function: FeatureFunction) -> FeatureFunction:
    """Features of the images that latents decode to; gradients flow through both networks (A.4).

    The function takes the variables {"vae": …, "encoder": …} and scaled latents [b, h, w, 4].
    """

    def of_latents(variables: PyTree, latents: jax.Array) -> dict[str, jax.Array]:
        images = apply_variables(vae, variables["vae"], latents, method=VAE.decode_scaled)
        return feature_function(variables["encoder"], images)

    return of_latents


def compose(functions: Mapping[str, FeatureFunction]) -> FeatureFunction:
    """All features of several encoders of the same images.

    Args:
      functions: {name: feature function}. The result takes the variables {name: …} and calls the
        features "name/feature", or just "feature" where the name is empty.

    Raises:
      ValueError: two encoders give a feature of the same name; raised when the function is called.
    """

    def feature_function(variables: PyTree, images: jax.Array) -> dict[str, jax.Array]:
        found: dict[str, jax.Array] = {}
        for prefix, function in functions.items():
            new = function(variables.get(prefix), images)
            named = {f"{prefix}/{name}" if prefix else name: x for name, x in new.items()}
            if both := sorted(named.keys() & found.keys()):
                raise ValueError(f"two encoders give a feature called {both[0]!r}: name them apart")
            found |= named
        return found

    return feature_function
