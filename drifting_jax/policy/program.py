"""The program of a policy's training, and the shapes that it needs."""

from typing import NamedTuple

from jax.sharding import Mesh

from drifting_jax.config import ConfigDict
from drifting_jax.errors import UserError
from drifting_jax.policy.networks import make_network
from drifting_jax.policy.windows import Horizons
from drifting_jax.training import single_target
from drifting_jax.training.program import Program


class PolicySizes(NamedTuple):
    """d_o and d_a, the dimensions of an observation and of an action."""

    observation: int
    action: int


def horizons_of(config: ConfigDict) -> Horizons:
    """Returns the horizons of config.data."""
    d = config.data
    return Horizons(d.observation_horizon, d.prediction_horizon, d.action_horizon)


def check_config(config: ConfigDict, mesh: Mesh) -> None:
    """Checks that a step splits over the mesh, and that its options go together.

    Raises:
      UserError: names the fields.
    """
    horizons_of(config).check()
    heads, width = config.model.num_heads, config.model.width
    if config.model.kind == "transformer" and (width % heads or width // heads % 2):
        raise UserError(
            "config.model.width must be config.model.num_heads times an even number; found width "
            f"{width} and {heads} heads"
        )
    single_target.check_config(config, mesh)


def policy_program(config: ConfigDict, sizes: PolicySizes, mesh: Mesh) -> Program:
    """Assembles a policy's step."""
    horizons = horizons_of(config)
    task = single_target.TaskSpec(
        name="policy",
        feature="actions",
        model=make_network(config),
        condition=(horizons.observation, sizes.observation),
        target=(horizons.prediction, sizes.action),
    )
    return single_target.assemble(config, task, mesh)
