"""The program of a policy's training, and the shapes that it needs: see `training.programs`."""

import functools
import math
from typing import Any, NamedTuple

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
from drifting_jax.policy.networks import make_network
from drifting_jax.policy.step import PolicyMetrics, PolicyStepConfig, policy_step
from drifting_jax.policy.windows import Horizons
from drifting_jax.steps.culprit import culprit_name
from drifting_jax.steps.state import TrainState, create_state
from drifting_jax.training import build, initial_states, scalars
from drifting_jax.training.program import Carry, Program, jit_step, report_of

PyTree = Any


class PolicySizes(NamedTuple):
    """d_o and d_a, the dimensions of an observation and of an action."""

    observation: int
    action: int


def horizons_of(config: ConfigDict) -> Horizons:
    """Returns the horizons of config.data."""
    d = config.data
    return Horizons(d.observation_horizon, d.prediction_horizon, d.action_horizon)


def drift_labels(config: ConfigDict) -> tuple[str, ...]:
    """Returns the names of the drifts in metrics: their temperatures, or "learned"."""
    if config.single_target.learned_temperature:
        return ("learned",)
    return drift_names(build.drift_options(config))


def check_config(config: ConfigDict, mesh: Mesh) -> None:
    """Checks that a step splits over the mesh, and that its options go together.

    Raises:
      UserError: names the fields.
    """
    horizons_of(config).check()
    if config.train.conditions % mesh.size:
        raise UserError(
            f"config.train.conditions must be a multiple of the {mesh.size} devices; "
            f"found {config.train.conditions}"
        )
    heads, width = config.model.num_heads, config.model.width
    if config.model.kind == "transformer" and (width % heads or width // heads % 2):
        raise UserError(
            "config.model.width must be config.model.num_heads times an even number; found width "
            f"{width} and {heads} heads"
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


def policy_program(config: ConfigDict, sizes: PolicySizes, mesh: Mesh) -> Program:
    """Assembles a policy's step."""
    settings, schedule = _step_config(config), build.generator_schedule(config)
    drifts = drift_labels(config)
    step = functools.partial(
        policy_step,
        key=stream_key(config, "policy_steps"),
        model=make_network(config),
        optimizer=_optimizer(config),
        settings=settings,
    )

    def carried(carry: Carry, _: Any, batch: Any):
        state, metrics = step(carry.state, batch)
        return Carry(state), report_of(state, metrics)

    init = functools.partial(init_policy, config, sizes)
    on_host = config.optim.moments_on_host
    carry = Carry(initial_states.state_template(config, mesh, init, moments_on_host=on_host))
    return Program(
        name="policy",
        mesh=mesh,
        init=init,
        make_queue=None,
        carry=carry,
        frozen={},
        batch=_batch(config, sizes, mesh),
        step=jit_step(carried, carry, mesh),
        to_scalars=lambda metrics: _scalars(
            metrics, drifts, learning_rate=float(schedule(int(metrics.updates)))
        ),
        culprit_name=lambda number: culprit_name(number, ["actions"], drifts),
        checkpoint_items=lambda carry, _: {"state": carry.state},
        num_steps=config.train.num_steps,
        images_per_step=config.train.conditions * settings.generated,
    )


def init_policy(config: ConfigDict, sizes: PolicySizes, params: PyTree | None = None) -> TrainState:
    """Returns a policy's state before the first step, with these parameters or random ones."""
    if params is None:
        horizons = horizons_of(config)
        noise = jnp.zeros((1, 1, horizons.prediction, sizes.action))
        observations = jnp.zeros((1, horizons.observation, sizes.observation))
        key = stream_key(config, "policy_init")
        params = params_of(config, init_params(make_network(config), key, noise, observations))
    return create_state(params, _optimizer(config), ema_decays=config.train.ema_decays)


def params_of(config: ConfigDict, network: PyTree) -> PyTree:
    """Returns all that is trained, with these parameters of the network."""
    if not config.single_target.learned_temperature:
        return {"network": network}
    start = jnp.float32(math.log(config.drift.temperatures[0]))
    return {"network": network, "log_temperature": start}


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


def _step_config(config: ConfigDict) -> PolicyStepConfig:
    s = config.single_target
    return PolicyStepConfig(
        generated=config.train.generated,
        drift=build.drift_options(config),
        per_row=s.statistics == "row",
        learns_temperature=s.learned_temperature,
        neighbour_width=s.neighbour_width,
        num_steps=config.train.num_steps,
        ema_decays=tuple(config.train.ema_decays),
    )


def _batch(config: ConfigDict, sizes: PolicySizes, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of a batch."""
    rows, horizons, c = meshes.batch_sharding(mesh), horizons_of(config), config.train.conditions
    positives = 1 + config.single_target.neighbours
    shapes: dict[str, tuple[int, ...]] = {
        "observation": (c, horizons.observation, sizes.observation),
        "action": (c, positives, horizons.prediction, sizes.action),
    }
    if positives > 1:
        shapes["distance"] = (c, positives)
    found = {
        name: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=rows)
        for name, shape in shapes.items()
    }
    return found | {"label": jax.ShapeDtypeStruct((c,), jnp.int32, sharding=rows)}


def _scalars(
    metrics: PolicyMetrics, drifts: tuple[str, ...], *, learning_rate: float
) -> dict[str, float]:
    """Returns the scalars of a line of metrics.jsonl: those of a toy, and a policy's own."""
    found = scalars.of_toy(metrics, drifts=drifts, learning_rate=learning_rate)
    found["energy_score"] = float(metrics.energy_score)
    if metrics.temperature is not None:
        found["temperature"] = float(metrics.temperature)
    return found
