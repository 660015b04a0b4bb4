"""The checks of `pixel_encoders`: lists with one entry for each further encoder."""

import math
from collections.abc import Mapping
from typing import Any

from drifting_jax.errors import UserError


def check_names(name: str, values: tuple[Any, ...]) -> None:
    """Checks that a list holds strings that are not empty.

    Args:
      name: the field, for messages.
      values: such as ("dinov2_b", "resnet").

    Raises:
      UserError: it does not.
    """
    if not all(isinstance(value, str) and value for value in values):
        raise UserError(f"config.{name} must hold strings such as ('a', 'b'); found {values!r}")


def check_weights(name: str, values: tuple[Any, ...]) -> None:
    """Checks that a list holds numbers of zero or above.

    Args:
      name: the field, for messages.
      values: such as (1.0, 0.5).

    Raises:
      UserError: it does not.
    """
    if not all(type(value) in (int, float) and 0 <= value < math.inf for value in values):
        raise UserError(
            f"config.{name} must hold numbers of zero or above such as (1.0, 0.5); found {values!r}"
        )


def check_encoders(values: Mapping[str, Any]) -> None:
    """Checks that the encoders of a config go together.

    Args:
      values: of the config, by dotted names.

    Raises:
      UserError: the lists have other lengths, or there is no feature.
    """
    kinds = values["pixel_encoders.kinds"]
    for field in ("paths", "weights"):
        found = values[f"pixel_encoders.{field}"]
        if len(found) != len(kinds) and (found or field == "paths"):
            raise UserError(
                f"config.pixel_encoders.{field} must have an entry for each of "
                f"config.pixel_encoders.kinds {kinds!r}; found {found!r}"
            )
    if values["encoder.kind"] == "autoencoder":
        return
    if values["task"] == "encoder":
        raise UserError("config.encoder.kind must be 'autoencoder' in a run that trains one")
    if values["train.nearest_positives"]:
        raise UserError(
            "config.train.nearest_positives finds them with the autoencoder, which "
            "config.encoder.kind='none' leaves out: set it to 0"
        )
    if values["encoder.weight"] != 1:
        raise UserError(
            "config.encoder.weight weighs the autoencoder, which config.encoder.kind='none' leaves "
            "out: set it to 1"
        )
    if values["encoder.path"]:
        raise UserError(
            "config.encoder.path names an autoencoder, which config.encoder.kind='none' leaves out"
        )
    has_encoder = kinds or values["extra_encoder.kind"] != "none"
    if not (has_encoder or values["features.raw"] or values["features.input_rms"]):
        raise UserError(
            "config.encoder.kind='none' leaves the loss without a feature: name an encoder in "
            "config.extra_encoder.kind, or set config.features.raw"
        )
