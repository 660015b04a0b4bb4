"""Policies as config.json and model.safetensors, the form for the Hugging Face Hub."""

from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from drifting_jax.policy.networks import MODULES, kind_of
from drifting_jax.policy.scaling import Scalings
from drifting_jax.policy.windows import Horizons
from drifting_jax.weights import own_folders
from drifting_jax.weights.shapes import check_fields

PyTree = Any
_NAME = "policy"
_LONGEST = 4096  # of any horizon


class Weights(NamedTuple):
    """What a folder holds; the attributes are those of `Policy`."""

    model: nn.Module
    params: PyTree
    horizons: Horizons
    scalings: Scalings
    step: int
    ema_decay: float


def write_folder(folder: Path, weights: Weights) -> None:
    """Writes config.json and model.safetensors into a folder, which is made."""
    record = {
        "network": _NAME,
        "kind": kind_of(weights.model),
        "fields": own_folders.fields_record(weights.model),
        "horizons": weights.horizons._asdict(),
        "scaling": weights.scalings.record(),
        "step": weights.step,
        "ema_decay": weights.ema_decay,
    }
    own_folders.write(folder, record, weights.params, for_hub=True)


def read_folder(folder: Path) -> Weights | None:
    """Returns what `write_folder` wrote; None if the folder holds no network of ours.

    Raises:
      UserError: it is another network, or damaged.
    """
    return own_folders.read_as(_NAME, folder, _weights_of)


def _weights_of(record: dict[str, Any], description: Path, params: Path) -> Weights:
    given = record["fields"].items()
    model = MODULES[record["kind"]](
        **{name: own_folders.from_json(name, value) for name, value in given}
    )
    check_fields(model, record["step"], description)
    horizons = Horizons(**record["horizons"])
    if any(type(steps) is not int or not 0 < steps <= _LONGEST for steps in horizons):
        raise ValueError(f"horizons {tuple(horizons)}")
    horizons.check()
    scalings = Scalings.from_record(record["scaling"], description)
    seen, acted = (len(scaling.centre) for scaling in scalings)
    shapes = ((1, 1, horizons.prediction, acted), (1, horizons.observation, seen))
    inputs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    found = own_folders.read_params(model, params, inputs=inputs)
    return Weights(model, found, horizons, scalings, record["step"], float(record["ema_decay"]))
