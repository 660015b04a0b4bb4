"""The one assembly of a training step: from a config and a mesh to a jitted program.

Training, the dry run, resuming, benchmarks and tests take their step from here. A program's carry
is what a step changes, and its step is (carry, frozen, batch) -> (carry, report).
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from drifting_jax.config import ConfigDict
from drifting_jax.config.streams import stream_key
from drifting_jax.data.sources import DataSpec
from drifting_jax.distributed import meshes
from drifting_jax.method.fields.table import drift_names
from drifting_jax.models.mlp import MLP
from drifting_jax.models.vae import VAE
from drifting_jax.steps.culprit import culprit_name
from drifting_jax.steps.encoder_step import encoder_step
from drifting_jax.steps.generator_step import generator_step
from drifting_jax.steps.state import TrainState
from drifting_jax.steps.toy_step import toy_step
from drifting_jax.training import activations, build, dataset, frozen, initial_states, scalars
from drifting_jax.training.attention_kernel import generator_in_training
from drifting_jax.training.first_carry import negatives_template, preparing, statistics_of
from drifting_jax.training.loss_memory import loss_bytes
from drifting_jax.training.memory_plan import MemoryPlan, memory_plan
from drifting_jax.training.program import Carry, Program, jit_step, report_of
from drifting_jax.training.queues import make_queue

PyTree = Any


def generator_program(
    config: ConfigDict,
    spec: DataSpec,
    mesh: Mesh,
    *,
    extras: Mapping[str, nn.Module] = MappingProxyType({}),
    vae: VAE | None = None,
) -> Program:
    """Assembles the generator's step.

    Args:
      config: resolved, of task "generator".
      spec: shape and classes of the samples.
      mesh: the devices.
      extras: {name: network of an encoder of pixels}, as `frozen` prepares them.
      vae: decodes latents for them.

    Raises:
      UserError: the rows of a step do not split over the mesh.
    """
    variables = _template(config, mesh, frozen.variables_shapes(config, spec, extras, vae))
    init = functools.partial(initial_states.init_generator, config, spec)
    on_host = config.optim.moments_on_host
    carry = Carry(
        initial_states.state_template(config, mesh, init, moments_on_host=on_host),
        make_queue(config, spec, mesh, shapes=True),
    )
    networks: dict[str, Any] = {"extras": extras, "vae": vae}
    of_sample = activations.feature_shapes(config, spec, variables, **networks)
    if config.drift.negatives == "stale":
        carry = dataclasses.replace(carry, negatives=negatives_template(config, mesh, of_sample))
    batch = _images(config, spec, mesh, config.queue.push_per_step)
    held: tuple[PyTree, ...] = (carry, variables)
    if config.queue.kind == "dataset":  # the data set is the batch of every step
        dataset.check_fits(spec, mesh, held=meshes.bytes_per_device(held))
        batch = dataset.template(spec, mesh)
        held = (*held, batch)
    config, plan = _planned(config, spec, held, mesh, networks, of_sample)
    feature_function, features = build.make_feature_function(config, spec, **networks), [*of_sample]
    settings = build.generator_step_config(config, plan, features)
    schedule, drifts = build.generator_schedule(config), drift_names(settings.drift)
    given: dict[str, Any] = {
        "key": stream_key(config, "generator_steps"),
        "model": generator_in_training(config, spec, mesh.devices.flat[0]),
        "feature_function": feature_function,
        "settings": settings,
    }
    step = functools.partial(
        generator_step,
        optimizer=build.generator_optimizer(config),
        nearness=build.make_nearness(config, spec),
        **given,
    )
    if settings.shared_statistics == "previous":
        measure = functools.partial(statistics_of, given)
        shapes = jax.eval_shape(measure, carry, variables, batch)
        carry = dataclasses.replace(carry, statistics=_template(config, mesh, shapes))
    passes = 3 if plan.microbatches > 1 and settings.shares_statistics else 1
    return Program(
        name="generator",
        mesh=mesh,
        init=init,
        make_queue=functools.partial(make_queue, config, spec, mesh),
        carry=carry,
        frozen=variables,
        batch=batch,
        step=jit_step(_of_generator(step), carry, mesh),
        to_scalars=lambda metrics: scalars.of_generator(
            metrics,
            drifts=drifts,
            learning_rate=float(schedule(int(metrics.updates))),
        ),
        culprit_name=lambda number: culprit_name(number, features, drifts),
        checkpoint_items=_generator_items,
        num_steps=config.train.num_steps,
        images_per_step=settings.labels * settings.generated,
        microbatches=plan.microbatches,
        keep_maps=plan.keep_maps if passes > 1 else "no",
        remat=plan.remat,
        prepare=preparing(carry, given, mesh),
    )


def encoder_program(config: ConfigDict, spec: DataSpec, mesh: Mesh) -> Program:
    """Assembles the masked autoencoder's step, for a config of task "encoder" or "generator"."""
    t, schedule = config.encoder.train, build.encoder_schedule(config)
    step = functools.partial(
        encoder_step,
        key=stream_key(config, "encoder_steps"),
        model=build.make_encoder(config, spec),
        optimizer=build.encoder_optimizer(config),
        settings=build.encoder_step_config(config),
    )
    init = functools.partial(initial_states.init_encoder, config, spec)
    carry = Carry(initial_states.state_template(config, mesh, init))
    return Program(
        name="encoder",
        mesh=mesh,
        init=init,
        make_queue=None,
        carry=carry,
        frozen={},
        batch=_images(config, spec, mesh, t.batch_size),
        step=jit_step(_without_queue(step), carry, mesh),
        to_scalars=lambda metrics: scalars.of_encoder(
            metrics, learning_rate=float(schedule(int(metrics["updates"])))
        ),
        culprit_name=lambda number: "the gradient" if number else "the loss",
        checkpoint_items=lambda carry, _: _state_and_ema(carry.state),
        num_steps=t.num_steps,
        images_per_step=t.batch_size,
        microbatches=t.microbatches,
    )


def toy_program(config: ConfigDict, mesh: Mesh) -> Program:
    """Assembles the toy's step."""
    settings, schedule = build.toy_step_config(config), build.generator_schedule(config)
    drifts = drift_names(settings.drift)
    step = functools.partial(
        toy_step,
        key=stream_key(config, "toy_steps"),
        model=MLP(widths=tuple(config.model.widths)),
        optimizer=build.generator_optimizer(config),
        settings=settings,
    )
    init = functools.partial(initial_states.init_toy, config)
    on_host = config.optim.moments_on_host
    carry = Carry(initial_states.state_template(config, mesh, init, moments_on_host=on_host))
    rows, points = meshes.batch_sharding(mesh), config.train.positives
    return Program(
        name="toy",
        mesh=mesh,
        init=init,
        make_queue=None,
        carry=carry,
        frozen={},
        batch={
            "image": jax.ShapeDtypeStruct((points, 2), jnp.float32, sharding=rows),
            "label": jax.ShapeDtypeStruct((points,), jnp.int32, sharding=rows),
        },
        step=jit_step(_without_queue(step), carry, mesh),
        to_scalars=lambda metrics: scalars.of_toy(
            metrics,
            drifts=drifts,
            learning_rate=float(schedule(int(metrics.updates))),
        ),
        culprit_name=lambda number: culprit_name(number, ["points"], drifts),
        checkpoint_items=lambda carry, _: {"state": carry.state},
        num_steps=config.train.num_steps,
        images_per_step=settings.generated,
    )


def _template(config: ConfigDict, mesh: Mesh, shapes: PyTree) -> PyTree:
    shardings = meshes.sharding_for_tree(shapes, mesh, config.mesh.rules)
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        shardings,
    )


def _images(
    config: ConfigDict, spec: DataSpec, mesh: Mesh, size: int
) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of a batch; it is padded to a multiple of the devices."""
    size = -(-size // mesh.size) * mesh.size
    dtype, rows = jnp.float16 if config.data.latent else jnp.uint8, meshes.batch_sharding(mesh)
    return {
        "image": jax.ShapeDtypeStruct((size, *spec.image_shape), dtype, sharding=rows),
        "label": jax.ShapeDtypeStruct((size,), jnp.int32, sharding=rows),
    }


def _planned(
    config: ConfigDict,
    spec: DataSpec,
    held: Sequence[PyTree],
    mesh: Mesh,
    networks: Mapping[str, Any],
    of_sample: Mapping[str, jax.ShapeDtypeStruct],
) -> tuple[ConfigDict, MemoryPlan]:
    """Returns the config with the rematerialisation of a plan for the memory, and the plan.

    `held` are the carry, the frozen networks' variables, and what else a device holds throughout;
    `of_sample` are the shapes of a sample's features.
    """
    carry, variables = held[:2]
    plan = memory_plan(
        config,
        mesh,
        held=meshes.bytes_per_device(held),
        maps=activations.map_bytes(config, spec, variables, **networks),
        least=activations.least_of_pixels(config, spec, variables, **networks),
        loss=loss_bytes(config, mesh, of_sample),
        activations=activations.kept_activations(
            config, spec, carry.state.params, variables, **networks
        ),
    )
    return activations.with_remat(config, plan.remat), plan


def _of_generator(step: Callable) -> Callable:
    """Returns `generator_step` as a step on a carry."""

    def carried(carry: Carry, variables: PyTree, batch: Mapping[str, jax.Array]):
        assert carry.queue is not None  # a generator's carry has one
        state, queue, metrics = step(
            carry.state,
            carry.queue,
            variables,
            batch,
            previous=carry.statistics,
            stale=carry.negatives,
        )
        skipped = state.skipped > carry.state.skipped

        def kept_if_skipped(new: PyTree, old: PyTree) -> PyTree:
            """What a skipped step found would spoil the next."""
            return jax.tree.map(lambda new, old: jnp.where(skipped, old, new), new, old)

        statistics, negatives = carry.statistics, carry.negatives
        if statistics is not None:
            after = {name: x.without_reach for name, x in metrics.statistics.items()}
            statistics = kept_if_skipped(after, statistics)
        if negatives is not None:
            negatives = kept_if_skipped(metrics.features, negatives)
            metrics = dataclasses.replace(metrics, features=None)
        return Carry(state, queue, statistics, negatives), report_of(state, metrics)

    return carried


def _without_queue(step: Callable) -> Callable:
    """Returns a step on a state alone as a step on a carry."""

    def carried(carry: Carry, variables: PyTree, batch: Mapping[str, jax.Array]):
        state, metrics = step(carry.state, batch)
        return Carry(state), report_of(state, metrics)

    return carried


def _state_and_ema(state: TrainState) -> dict[str, PyTree]:
    """The averages are an item of their own, because samplers read them alone."""
    return {"state": dataclasses.replace(state, ema={}), "ema": state.ema}


def _generator_items(carry: Carry, batches_taken: int) -> dict[str, PyTree]:
    position = {"batches": np.int64(batches_taken)}
    items = {**_state_and_ema(carry.state), "queue": carry.queue, "position": position}
    others = {"statistics": carry.statistics, "negatives": carry.negatives}
    return items | {name: tree for name, tree in others.items() if tree is not None}
