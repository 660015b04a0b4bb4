"""The program of a task whose conditions have a single target each.

Policies and images of conditions share it; a task adds its network, shapes and names.
"""

import dataclasses
import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from drifting_jax.config import ConfigDict
from drifting_jax.config.streams import stream_key
from drifting_jax.distributed import meshes
from drifting_jax.errors import UserError
from drifting_jax.method.fields.table import drift_names, field_named, negatives_of
from drifting_jax.models.calls import init_params
from drifting_jax.steps.culprit import culprit_name
from drifting_jax.steps.single_target_step import (
    SingleTargetMetrics,
    SingleTargetStepConfig,
    single_target_step,
)
from drifting_jax.steps.state import TrainState, create_state
from drifting_jax.training import build, initial_states, scalars
from drifting_jax.training.program import Carry, Program, jit_step, report_of

PyTree = Any


@dataclasses.dataclass(frozen=True)
class TaskSpec:
    """What a task adds.

    Attributes:
      name: of the task and of its stage; its random streams are <name>_init and <name>_steps.
      feature: what a target is, for messages.
      model: (noise [c, g, ...], conditions [c, ...]) -> samples [c, g, ...].
      condition: shape of a condition, without the row axis.
      target: shape of a target.
    """

    name: str
    feature: str
    model: nn.Module
    condition: tuple[int, ...]
    target: tuple[int, ...]


def drift_labels(config: ConfigDict) -> tuple[str, ...]:
    """Returns the names of the drifts in metrics: their temperatures, or "learned"."""
    if config.single_target.learned_temperature:
        return ("learned",)
    return drift_names(build.drift_options(config))


def check_config(config: ConfigDict, mesh: Mesh) -> None:
    """Checks that a step splits over the mesh, and that the options of its loss go together.

    Raises:
      UserError: names the fields.
    """
    if config.train.conditions % mesh.size:
        raise UserError(
            f"config.train.conditions must be a multiple of the {mesh.size} devices; "
            f"found {config.train.conditions}"
        )
    if not config.single_target.learned_temperature:
        return
    options, field = build.drift_options(config), field_named(config.drift.field)
    for fits, needed in (
        (field.has_temperature, "a config.drift.field with temperatures, such as mean_shift"),
        (len(options.temperatures) == 1, "one entry in config.drift.temperatures"),
        (not options.annealed, "config.drift.annealed=False"),
        (not options.lookahead, "config.drift.lookahead=0"),
        (negatives_of(options) == "own", "config.drift.negatives=own"),
        (config.train.generated > 1, "config.train.generated of at least 2"),
    ):
        if not fits:
            raise UserError(f"config.single_target.learned_temperature needs {needed}")


def assemble(config: ConfigDict, task: TaskSpec, mesh: Mesh) -> Program:
    """Assembles the step of a task."""
    settings, schedule = _step_config(config), build.generator_schedule(config)
    drifts = drift_labels(config)
    step = functools.partial(
        single_target_step,
        key=stream_key(config, f"{task.name}_steps"),
        model=task.model,
        optimizer=_optimizer(config),
        settings=settings,
    )

    def carried(carry: Carry, _: Any, batch: Any):
        state, metrics = step(carry.state, batch)
        return Carry(state), report_of(state, metrics)

    init = functools.partial(_init, config, task)
    on_host = config.optim.moments_on_host
    carry = Carry(initial_states.state_template(config, mesh, init, moments_on_host=on_host))
    return Program(
        name=task.name,
        mesh=mesh,
        init=init,
        make_queue=None,
        carry=carry,
        frozen={},
        batch=_batch(config, task, mesh),
        step=jit_step(carried, carry, mesh),
        to_scalars=lambda metrics: _scalars(
            metrics, drifts, learning_rate=float(schedule(int(metrics.updates)))
        ),
        culprit_name=lambda number: culprit_name(number, [task.feature], drifts),
        checkpoint_items=lambda carry, _: {"state": carry.state},
        num_steps=config.train.num_steps,
        images_per_step=config.train.conditions * settings.generated,
    )


def params_of(config: ConfigDict, network: PyTree) -> PyTree:
    """Returns all that is trained, with these parameters of the network."""
    if not config.single_target.learned_temperature:
        return {"network": network}
    start = jnp.float32(math.log(config.drift.temperatures[0]))
    return {"network": network, "log_temperature": start}


def _init(config: ConfigDict, task: TaskSpec, params: PyTree | None = None) -> TrainState:
    """The state before the first step, with these parameters or random ones."""
    if params is None:
        noise, conditions = jnp.zeros((1, 1, *task.target)), jnp.zeros((1, *task.condition))
        key = stream_key(config, f"{task.name}_init")
        params = params_of(config, init_params(task.model, key, noise, conditions))
    return create_state(params, _optimizer(config), ema_decays=config.train.ema_decays)


def _optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """The optimizer of config.optim; a learned temperature has an Adam of its own.

    So neither changes the other's clip, decay and rate.
    """
    of_network = build.generator_optimizer(config)
    if not config.single_target.learned_temperature:
        return of_network
    of_temperature = optax.adam(config.single_target.temperature_rate)
    return optax.partition(
        {"network": of_network, "temperature": of_temperature},
        {"network": "network", "log_temperature": "temperature"},
    )


def _step_config(config: ConfigDict) -> SingleTargetStepConfig:
    s = config.single_target
    return SingleTargetStepConfig(
        generated=config.train.generated,
        drift=build.drift_options(config),
        per_row=s.statistics == "row",
        learns_temperature=s.learned_temperature,
        neighbour_width=s.neighbour_width,
        num_steps=config.train.num_steps,
        ema_decays=tuple(config.train.ema_decays),
    )


def _batch(config: ConfigDict, task: TaskSpec, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a batch."""
    rows, c = meshes.batch_sharding(mesh), config.train.conditions
    positives = 1 + config.single_target.neighbours
    shapes = {"condition": (c, *task.condition), "target": (c, positives, *task.target)}
    if positives > 1:
        shapes["distance"] = (c, positives)
    found = {
        name: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=rows)
        for name, shape in shapes.items()
    }
    return found | {"label": jax.ShapeDtypeStruct((c,), jnp.int32, sharding=rows)}


def _scalars(
    metrics: SingleTargetMetrics, drifts: tuple[str, ...], *, learning_rate: float
) -> dict[str, float]:
    """The scalars of a line of metrics.jsonl: those of a toy, and of a single target."""
    found = scalars.of_toy(metrics, drifts=drifts, learning_rate=learning_rate)
    found["energy_score"] = float(metrics.energy_score)
    if metrics.temperature is not None:
        found["temperature"] = float(metrics.temperature)
    return found
