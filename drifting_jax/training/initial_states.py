"""The training states before the first step, and their shapes and shardings."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from drifting_jax.compatibility import CPU_HAS_HOST_MEMORY
from drifting_jax.config import ConfigDict
from drifting_jax.config.streams import stream_key
from drifting_jax.data.sources import DataSpec
from drifting_jax.distributed import meshes
from drifting_jax.models import generators
from drifting_jax.models.calls import init_params
from drifting_jax.models.mlp import MLP
from drifting_jax.steps.state import TrainState, create_state
from drifting_jax.training import build

# Where q starts in a toy: its centre, and the factor on the last layer's kernel.
_START_CENTRES = {"collapsed": (-1.5, 0.0), "between": (0.0, 0.0), "far": (5.0, 5.0)}
_START_SPREAD = 0.1


def init_generator(config: ConfigDict, spec: DataSpec) -> TrainState:
    """Returns a generator's state before the first step."""
    model, key = build.make_generator(config, spec), stream_key(config, "generator_init")
    params = generators.init_generator(key, model)
    optimizer = build.generator_optimizer(config)
    return create_state(params, optimizer, ema_decays=config.train.ema_decays)


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
