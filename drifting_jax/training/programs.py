"""The one assembly of a training step: from a config and a mesh to a jitted program.

Training, the dry run, resuming, benchmarks and tests take their step from here. A program's carry
is what a step changes, and its step is (carry, frozen, batch) -> (carry, report).
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from drifting_jax.config import ConfigDict
from drifting_jax.config.streams import stream_key
from drifting_jax.data.sources import DataSpec
from drifting_jax.distributed import meshes, transfer
from drifting_jax.models.mlp import MLP
from drifting_jax.models.vae import VAE
from drifting_jax.steps import sample_queue
from drifting_jax.steps.culprit import culprit_name
from drifting_jax.steps.encoder_step import encoder_step
from drifting_jax.steps.generator_step import generator_step
from drifting_jax.steps.sample_queue import SampleQueue
from drifting_jax.steps.state import TrainState
from drifting_jax.steps.toy_step import toy_step
from drifting_jax.training import activations, build, frozen, initial_states, scalars
from drifting_jax.training.memory_plan import memory_plan

PyTree = Any


@flax.struct.dataclass
class Carry:
    """What a step changes and donates: the state and, of a generator, the sample queue."""

    state: TrainState
    queue: SampleQueue | None = None


@flax.struct.dataclass
class Report:
    """What a step returns besides the carry, in arrays of its own: the next step donates the carry.

    Attributes:
      metrics: what the pure step returns.
      skipped, skipped_in_a_row, culprit: [] int32, as in `TrainState`.
    """

    metrics: PyTree
    skipped: jax.Array
    skipped_in_a_row: jax.Array
    culprit: jax.Array


class Step(Protocol):
    """A jitted step: it can be called, or only traced or lowered for shapes of its arguments."""

    def __call__(
        self, carry: Carry, frozen: PyTree, batch: Mapping[str, jax.Array], /
    ) -> tuple[Carry, Report]: ...

    def trace(
        self, carry: Carry, frozen: PyTree, batch: Mapping[str, jax.ShapeDtypeStruct], /
    ) -> jax.stages.Traced: ...

    def lower(
        self, carry: Carry, frozen: PyTree, batch: Mapping[str, jax.ShapeDtypeStruct], /
    ) -> jax.stages.Lowered: ...


@dataclasses.dataclass(frozen=True)
class Program:
    """A training step, ready to be run or lowered.

    Attributes:
      name: "encoder", "generator" or "toy", as in metrics.jsonl.
      mesh: the devices.
      init: () -> `TrainState`, traceable.
      make_queue: makes the empty queue; None for a program without one.
      carry: tree of `jax.ShapeDtypeStruct` with shardings.
      frozen: likewise, of the frozen networks' variables; empty without any.
      batch: likewise, of a batch.
      step: jitted (carry, frozen, batch) -> (carry, `Report`); donates the carry.
      to_scalars: fetched metrics -> scalars of a line of metrics.jsonl.
      culprit_name: number in `TrainState.culprit` -> words.
      checkpoint_items: (carry, batches taken) -> the trees of a checkpoint.
      num_steps: steps of the whole training.
      images_per_step: what `images_per_second` counts.
      microbatches: parts of a batch that are computed one after another.
      keep_maps: whether the encoders' maps of all microbatches are kept: "yes", "host" or "no".
      remat: what the blocks keep for the backward pass of networks whose config says "auto".
    """

    name: str
    mesh: Mesh
    init: Callable[[], TrainState]
    make_queue: Callable[[], SampleQueue] | None
    carry: Carry
    frozen: PyTree
    batch: Mapping[str, jax.ShapeDtypeStruct]
    step: Step
    to_scalars: Callable[[PyTree], dict[str, float]]
    culprit_name: Callable[[int], str]
    checkpoint_items: Callable[[Carry, int], dict[str, PyTree]]
    num_steps: int
    images_per_step: int
    microbatches: int = 1
    keep_maps: str = "no"
    remat: str = "none"

    def lower(self) -> jax.stages.Lowered:
        """Returns the step, lowered for its mesh: nothing is computed and no array is made."""
        return self.step.lower(self.carry, self.frozen, self.batch)

    def first_carry(self) -> Carry:
        """Returns the carry before the first step; each device makes its own part."""
        shardings = jax.tree.map(lambda x: x.sharding, self.carry.state)
        state = jax.jit(self.init, out_shardings=shardings)()
        return Carry(state, self.make_queue() if self.make_queue else None)


def carry_of(items: Mapping[str, PyTree]) -> Carry:
    """Returns the carry in the trees of a checkpoint."""
    state = items["state"]
    if "ema" in items:
        state = dataclasses.replace(state, ema=items["ema"])
    return Carry(state, items.get("queue"))


def generator_program(
    config: ConfigDict,
    spec: DataSpec,
    mesh: Mesh,
    *,
    extra: nn.Module | None = None,
    vae: VAE | None = None,
) -> Program:
    """Assembles the generator's step.

    Args:
      config: resolved, of task "generator".
      spec: shape and classes of the samples.
      mesh: the devices.
      extra: the network of config.extra_encoder, as `frozen` prepares it.
      vae: decodes latents for it.

    Raises:
      UserError: the rows of a step do not split over the mesh.
    """
    variables = _template(config, mesh, frozen.variables_shapes(config, spec, extra, vae))
    init = functools.partial(initial_states.init_generator, config, spec)
    on_host = config.optim.moments_on_host
    carry = Carry(
        initial_states.state_template(config, mesh, init, moments_on_host=on_host),
        build.make_queue(config, spec, mesh, make=sample_queue.template),
    )
    networks: dict[str, Any] = {"extra": extra, "vae": vae}
    kept = activations.kept_activations(config, spec, carry.state.params, variables, **networks)
    maps = activations.map_bytes(config, spec, variables, **networks)
    held = meshes.bytes_per_device((carry, variables))
    plan = memory_plan(config, mesh, held=held, maps=maps, activations=kept)
    config = activations.with_remat(config, plan.remat)
    feature_function = build.make_feature_function(config, spec, **networks)
    features = list(jax.eval_shape(feature_function, variables, activations.sample_of(spec)))
    settings = build.generator_step_config(config, plan)
    schedule, temperatures = build.generator_schedule(config), settings.drift.temperatures
    step = functools.partial(
        generator_step,
        key=stream_key(config, "generator_steps"),
        model=build.make_generator(config, spec),
        feature_function=feature_function,
        optimizer=build.generator_optimizer(config),
        settings=settings,
    )

    def carried(carry: Carry, variables: PyTree, batch: Mapping[str, jax.Array]):
        assert carry.queue is not None  # a generator's carry has one
        state, queue, metrics = step(carry.state, carry.queue, variables, batch)
        return Carry(state, queue), _report(state, metrics)

    passes = 3 if plan.microbatches > 1 and settings.shares_statistics else 1
    return Program(
        name="generator",
        mesh=mesh,
        init=init,
        make_queue=functools.partial(build.make_queue, config, spec, mesh),
        carry=carry,
        frozen=variables,
        batch=_images(config, spec, mesh, config.queue.push_per_step),
        step=_jit(carried, carry, mesh),
        to_scalars=lambda metrics: scalars.of_generator(
            metrics,
            temperatures=temperatures,
            learning_rate=float(schedule(int(metrics.updates))),
        ),
        culprit_name=lambda number: culprit_name(number, features, temperatures),
        checkpoint_items=_generator_items,
        num_steps=config.train.num_steps,
        images_per_step=settings.labels * settings.generated,
        microbatches=plan.microbatches,
        keep_maps=plan.keep_maps if passes > 1 else "no",
        remat=plan.remat,
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
        step=_jit(_without_queue(step), carry, mesh),
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
    temperatures = settings.drift.temperatures
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
        step=_jit(_without_queue(step), carry, mesh),
        to_scalars=lambda metrics: scalars.of_toy(
            metrics,
            temperatures=temperatures,
            learning_rate=float(schedule(int(metrics.updates))),
        ),
        culprit_name=lambda number: culprit_name(number, ["points"], temperatures),
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


def _jit(step: Callable, carry: Carry, mesh: Mesh) -> Step:
    shardings = jax.tree.map(lambda x: x.sharding, carry)

    def training_step(carry: Carry, variables: PyTree, batch: Mapping[str, jax.Array]):
        # It may lie in the host's memory; `out_shardings` puts it back there.
        opt_state = transfer.on_devices(carry.state.opt_state)
        state = dataclasses.replace(carry.state, opt_state=opt_state)
        return step(dataclasses.replace(carry, state=state), variables, batch)

    return jax.jit(
        training_step, donate_argnums=0, out_shardings=(shardings, meshes.replicated(mesh))
    )


def _without_queue(step: Callable) -> Callable:
    """Returns a step on a state alone as a step on a carry."""

    def carried(carry: Carry, variables: PyTree, batch: Mapping[str, jax.Array]):
        state, metrics = step(carry.state, batch)
        return Carry(state), _report(state, metrics)

    return carried


def _report(state: TrainState, metrics: PyTree) -> Report:
    return Report(metrics, state.skipped, state.skipped_in_a_row, state.culprit)


def _state_and_ema(state: TrainState) -> dict[str, PyTree]:
    """The averages are an item of their own, because samplers read them alone."""
    return {"state": dataclasses.replace(state, ema={}), "ema": state.ema}


def _generator_items(carry: Carry, batches_taken: int) -> dict[str, PyTree]:
    position = {"batches": np.int64(batches_taken)}
    return {**_state_and_ema(carry.state), "queue": carry.queue, "position": position}
