"""The frozen encoders of pixels that a config lists, and what their features weigh in the loss."""

import collections
import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from drifting_jax.config import ConfigDict
from drifting_jax.errors import UserError
from drifting_jax.method.encoders import FeatureFunction, in_colours
from drifting_jax.models.calls import apply_variables
from drifting_jax.weights.pixel_encoders import ENCODERS, PixelEncoder, Statistics

PyTree = Any

_OTHERS = ""  # features whose names do not begin with an encoder


@dataclasses.dataclass(frozen=True)
class Choice:
    """An encoder of pixels of a config.

    Attributes:
      name: what its features are called by: its kind, and a number where a kind comes again.
      kind: of `ENCODERS`.
      path: its weights.
      weight: of the losses of its features.
      path_field: the field that holds its path, for messages.
    """

    name: str
    kind: str
    path: str
    weight: float
    path_field: str

    @property
    def encoder(self) -> PixelEncoder:
        """Its entry in the table of encoders."""
        return ENCODERS[self.kind]


def choices(config: ConfigDict) -> tuple[Choice, ...]:
    """Returns the encoders of config.extra_encoder and config.pixel_encoders, in this order."""
    one, more = config.extra_encoder, config.pixel_encoders
    given = [] if one.kind == "none" else [(one.kind, one.path, one.weight, "extra_encoder.path")]
    weights = more.weights or (1.0,) * len(more.kinds)
    for kind, path, weight in zip(more.kinds, more.paths, weights, strict=True):
        given.append((kind, path, weight, "pixel_encoders.paths"))
    found: list[Choice] = []
    for kind, path, weight, field in given:
        before = sum(choice.kind == kind for choice in found)
        name = f"{kind}_{before + 1}" if before else kind
        found.append(Choice(name, kind, path, float(weight), field))
    return tuple(found)


def as_shown(config: ConfigDict, choice: Choice, model: nn.Module) -> nn.Module:
    """Returns an encoder's network as a step uses it: its dtype and how it is shown images."""
    c = config.pixel_encoders
    fields: dict[str, Any] = {**choice.encoder.shown, "dtype": jnp.dtype(config.encoder.dtype)}
    fields |= {"image_size": c.image_size} if c.image_size else {}
    fields |= {} if c.resize == "auto" else {"resize": c.resize}
    return model.clone(**fields)


def feature_functions(
    config: ConfigDict, extras: Mapping[str, nn.Module]
) -> dict[str, FeatureFunction]:
    """Returns {name: feature function} of networks {name: module} as a step uses them.

    The functions take images [b, h, w, c] of three channels, or of one, which stands for all three.
    """
    f = config.features
    statistics = Statistics(tuple(f.patch_sizes), f.partial_patches, f.joint_scale)
    policy = "none" if config.encoder.remat == "auto" else config.encoder.remat
    functions = {}
    for choice in choices(config):
        model = extras[choice.name]
        if hasattr(model, "remat"):
            model = model.clone(remat=policy)
        functions[choice.name] = in_colours(choice.encoder.features(model, statistics))
    return functions


def check_shown(config: ConfigDict, choice: Choice, model: nn.Module, variables: PyTree) -> None:
    """Checks that an encoder takes images of the configured side; nothing is computed.

    Args:
      config: of the run.
      choice: the encoder.
      model: its network.
      variables: arrays or their shapes.

    Raises:
      UserError: it does not.
    """
    shown, image = as_shown(config, choice, model), jax.ShapeDtypeStruct((1, 32, 32, 3), "float32")
    maps = functools.partial(apply_variables, shown, method="feature_maps")
    try:
        jax.eval_shape(maps, variables, image)
    except ValueError as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"config.pixel_encoders.image_size does not fit {choice.name}: {reason}"
        ) from None


def feature_weights(config: ConfigDict, names: Iterable[str]) -> dict[str, float]:
    """Returns {feature: weight of its loss}, of all features of a config.

    With config.features.total "sum" they are the configured ones, otherwise they add up to 1.

    Raises:
      UserError: there is no mean, because all weights are zero.
    """
    total = config.features.total
    # Without an autoencoder, the root mean square of the sample is the only other feature.
    others = 1.0 if config.encoder.kind == "none" else config.encoder.weight
    weights = {choice.name: choice.weight for choice in choices(config)}
    weights |= {"raw": config.features.raw_weight, _OTHERS: others}
    sources = {name: _source(name, weights) for name in names}
    counts = collections.Counter(sources.values())
    found = {name: weights[source] for name, source in sources.items()}
    if total == "mean_of_encoders":
        found = {name: weight / counts[sources[name]] for name, weight in found.items()}
    whole = sum(found.values())
    if total == "sum" or not found:
        return found
    if not whole:
        raise UserError(f"config.features.total={total!r} needs a feature of a weight above zero")
    return {name: weight / whole for name, weight in found.items()}


def _source(feature: str, weights: Mapping[str, float]) -> str:
    """The encoder of pixels that a feature is of, "raw" for the sample, or `_OTHERS`."""
    start = feature.partition("/")[0]
    return start if start in weights else _OTHERS
