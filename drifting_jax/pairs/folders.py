"""Generators of pairs as config.json and model.safetensors, the form for the Hugging Face Hub."""

from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from drifting_jax.models import generators
from drifting_jax.models.conditioned import ConditionedGenerator, ConditionedMLP
from drifting_jax.pairs.facts import PairFacts
from drifting_jax.weights import own_folders
from drifting_jax.weights.files import fetch
from drifting_jax.weights.reading import read_json
from drifting_jax.weights.shapes import check_fields

PyTree = Any
_NAME, _MLP = "pairs", "mlp"
_ENCODING = ("width", "depth", "as_map")  # of a condition, beside the fields of a generator


class Weights(NamedTuple):
    """What a folder holds; the attributes are those of `PairGenerator`."""

    facts: PairFacts
    params: PyTree
    model: nn.Module
    step: int
    ema_decay: float


def write_folder(folder: Path, weights: Weights) -> None:
    """Writes config.json and model.safetensors into a folder, which is made."""
    record = {
        "network": _NAME,
        **_model_record(weights.model),
        "pairs": weights.facts.record(),
        "step": weights.step,
        "ema_decay": weights.ema_decay,
    }
    own_folders.write(folder, record, weights.params, for_hub=True)


def is_folder(name: str) -> bool:
    """Whether a path or hf://owner/repo is a folder that `write_folder` wrote.

    Raises:
      UserError: it cannot be fetched, or its config.json is damaged.
    """
    folder = fetch(name)
    files = own_folders.files_of(folder) if folder.is_dir() else None
    return files is not None and read_json(files[0]).get("network") == _NAME


def read_folder(folder: Path) -> Weights | None:
    """Returns what `write_folder` wrote; None if the folder holds no network of ours.

    Raises:
      UserError: it is another network, or damaged.
    """
    return own_folders.read_as(_NAME, folder, _weights_of)


def _weights_of(record: dict[str, Any], description: Path, params: Path) -> Weights:
    model = _model_of(record)
    inner = [model.generator] if isinstance(model, ConditionedGenerator) else []
    for module in (model, *inner):
        check_fields(module, record["step"], description)
    facts = PairFacts.from_record(record["pairs"], description)
    of_condition, of_image = facts.shapes
    shapes = ((1, 1, *of_image), (1, *of_condition))
    inputs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    found = own_folders.read_params(model, params, inputs=inputs)
    return Weights(facts, found, model, record["step"], float(record["ema_decay"]))


def _model_record(model: nn.Module) -> dict[str, Any]:
    """The kind of a network, its fields, and those of the encoding of its condition."""
    if not isinstance(model, ConditionedGenerator):
        return {"kind": _MLP, "fields": own_folders.fields_record(model)}
    return {
        "kind": generators.kind_of(model.generator),
        "fields": own_folders.fields_record(model.generator),
        "condition": {name: getattr(model, name) for name in _ENCODING},
    }


def _model_of(record: dict[str, Any]) -> nn.Module:
    """The inverse of `_model_record`. Raises an error of nearly any type if it is none."""
    fields = {name: own_folders.from_json(name, x) for name, x in record["fields"].items()}
    if record["kind"] == _MLP:
        return ConditionedMLP(**fields)
    generator = generators.GENERATORS[record["kind"]].module(**fields)
    return ConditionedGenerator(generator, **record["condition"])
