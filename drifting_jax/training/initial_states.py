"""The training states before the first step, and their shapes and shardings."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh

from drifting_jax.compatibility import CPU_HAS_HOST_MEMORY
from drifting_jax.config import ConfigDict
from drifting_jax.config.streams import stream_key
from drifting_jax.data.sources import DataSpec
from drifting_jax.distributed import meshes
from drifting_jax.errors import UserError
from drifting_jax.models import generators
from drifting_jax.models.calls import init_params
from drifting_jax.models.mlp import MLP
from drifting_jax.steps.state import TrainState, create_state
from drifting_jax.training import build
from drifting_jax.weights.networks import load_network
from drifting_jax.weights.own_folders import module_fields
from drifting_jax.weights.shapes import param_shapes

PyTree = Any

# Fields of a generator that say how it is computed, or that only shapes of parameters depend on.
_FREE_FIELDS = (
    "dtype", "attention_dtype", "remat", "condition_width", "dropout",
)  # fmt: skip
# Where q starts in a toy: its centre, and the factor on the last layer's kernel.
_START_CENTRES = {"collapsed": (-1.5, 0.0), "between": (0.0, 0.0), "far": (5.0, 5.0)}
_START_SPREAD = 0.1


def init_generator(config: ConfigDict, spec: DataSpec, params: PyTree | None = None) -> TrainState:
    """Returns a generator's state before the first step, with these parameters or random ones."""
    if params is None:
        model, key = build.make_generator(config, spec), stream_key(config, "generator_init")
        params = generators.init_generator(key, model)
    optimizer, t = build.generator_optimizer(config), config.train
    return create_state(params, optimizer, ema_decays=t.ema_decays, ema_widths=t.ema_widths)


def read_start(config: ConfigDict, spec: DataSpec) -> PyTree | None:
    """Returns the parameters in config.model.init_from, on the host; None if it is empty.

    Raises:
      UserError: there is no generator, or one that differs from config.model.
    """
    if not (name := config.model.init_from):
        return None
    network, model = load_network(name, kind="generator"), build.make_generator(config, spec)
    if found := _differences(network.model, model):
        raise UserError(
            f"the generator in {name} (config.model.init_from) differs from config.model and the "
            f"data: {', '.join(found)}"
        )
    return network.variables["params"]


def _differences(theirs: nn.Module, ours: nn.Module) -> list[str]:
    """Where the parameters of two generators do not mean the same, in words; empty if nowhere."""
    if type(theirs) is not type(ours):
        return [f"it is a {type(theirs).__name__}, not a {type(ours).__name__}"]
    kept = [
        {name: x for name, x in module_fields(model).items() if name not in _FREE_FIELDS}
        for model in (theirs, ours)
    ]
    found = differences(*kept)
    shapes = [flatten_dict(param_shapes(model), sep="/") for model in (theirs, ours)]
    if not found and shapes[0] != shapes[1]:  # what no field says
        (name, shape) = min(set(shapes[0].items()) ^ set(shapes[1].items()), key=str)
        found = [f"{name} {shape.shape}"]
    return found


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """Returns where two mappings of the same names differ, in words."""
    return [
        f"{name} {theirs[name]!r} there, {value!r} here"
        for name, value in ours.items()
        if theirs[name] != value
    ]


def init_encoder(config: ConfigDict, spec: DataSpec) -> TrainState:
    """Returns a masked autoencoder's state before the first step."""
    model, key = build.make_encoder(config, spec), stream_key(config, "encoder_init")
    height, width = (side // model.input_patch_size for side in spec.image_shape[:2])
    image, mask = jnp.zeros((1, *spec.image_shape)), jnp.zeros((1, height, width))
    params = init_params(model, key, image, mask)
    optimizer = build.encoder_optimizer(config)
    return create_state(params, optimizer, ema_decays=(config.encoder.train.ema_decay,))


def init_toy(config: ConfigDict) -> TrainState:
    """Returns a toy's state before the first step, with q where config.start puts it."""
    model, key = MLP(widths=tuple(config.model.widths)), stream_key(config, "toy_init")
    params = init_params(model, key, jnp.zeros((1, config.model.noise_features)))
    # The last layer's bias says where q starts, the scale of its kernel how wide q is.
    params["output"] = {
        "kernel": _START_SPREAD * params["output"]["kernel"],
        "bias": jnp.asarray(_START_CENTRES[config.start], jnp.float32),
    }
    optimizer = build.generator_optimizer(config)
    return create_state(params, optimizer, ema_decays=config.train.ema_decays)


def state_template(
    config: ConfigDict, mesh: Mesh, init: Callable[[], TrainState], *, moments_on_host: bool = False
) -> TrainState:
    """Returns the shapes and shardings of the state that `init` makes; nothing is computed.

    `moments_on_host` puts the state of the optimizer into the host's memory. For a CPU that is the
    same memory.
    """
    moments_on_host &= mesh.devices.flat[0].platform != "cpu" or CPU_HAS_HOST_MEMORY

    def shardings(shapes: TrainState) -> TrainState:
        found = meshes.sharding_for_tree(shapes, mesh, config.mesh.rules)
        if not moments_on_host:
            return found
        pinned = jax.tree.map(lambda x: x.with_memory_kind("pinned_host"), found.opt_state)
        return dataclasses.replace(found, opt_state=pinned)

    return meshes.template(init, shardings=shardings)
