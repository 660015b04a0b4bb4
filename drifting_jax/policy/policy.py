"""Trained policies: read from a workdir, and asked for actions."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from drifting_jax.config import ConfigDict, load_config
from drifting_jax.config.streams import samples_key
from drifting_jax.distributed import meshes, transfer
from drifting_jax.errors import UserError
from drifting_jax.files import read_json
from drifting_jax.models.calls import apply
from drifting_jax.policy.folders import read_folder
from drifting_jax.policy.networks import make_network
from drifting_jax.policy.program import PolicySizes, horizons_of, policy_program
from drifting_jax.policy.scaling import Scalings
from drifting_jax.policy.windows import Horizons
from drifting_jax.steps.sampling import sample_rows
from drifting_jax.steps.state import TrainState, ema_name
from drifting_jax.surroundings import settled_jax
from drifting_jax.training.restore import chosen_decay, restored_items
from drifting_jax.weights.files import fetch

PyTree = Any
BATCH_SIZE = 64


@dataclasses.dataclass(frozen=True)
class Policy:
    """A policy ready to act.

    Attributes:
      horizons: of its windows.
      scalings: of its observations and actions.
      params: of the network.
      model: the network.
      batch_size: rows that are computed at once. It is fixed, so that a row's actions do not
        depend on the number of the others.
      step: training steps of its parameters.
      ema_decay: of the moving average that they are.
      config: of its run; None for one of a folder for the Hub.
    """

    horizons: Horizons
    scalings: Scalings
    params: PyTree
    model: nn.Module
    batch_size: int
    step: int
    ema_decay: float
    config: ConfigDict | None = None

    @property
    def sizes(self) -> PolicySizes:
        """Dimensions of an observation and of an action."""
        found = (len(scaling.centre) for scaling in self.scalings)
        return PolicySizes(*found)

    @property
    def observation_shape(self) -> tuple[int, int]:
        """(h, d_o) of what it sees of one environment."""
        return self.horizons.observation, self.sizes.observation

    def predict(
        self, observations: np.ndarray, *, seed: int, indices: np.ndarray | None = None
    ) -> np.ndarray:
        """Returns chunks of actions [n, H, d_a] float32, one for each row of observations.

        Row k depends on observations[k], the seed and indices[k] alone. Its first action belongs to
        the first of its observations. Actions stay within the range of the demonstrations.

        Args:
          observations: [n, h, d_o], in the units of the environment, the oldest one first.
          seed: from 0 to 2**32 - 1.
          indices: [n] integers; None for 0 to n - 1.

        Raises:
          ValueError: shapes that do not fit.
          UserError: the actions are not finite.
        """
        observations = np.asarray(observations, np.float32)
        expected = self.observation_shape
        if observations.ndim != 3 or observations.shape[1:] != expected:
            raise ValueError(
                f"observations must be [n, {expected[0]}, {expected[1]}]; found "
                f"{list(observations.shape)}"
            )
        n = len(observations)
        chosen = np.arange(n) if indices is None else np.asarray(indices)
        if chosen.shape != (n,):
            raise ValueError(f"indices must be [{n}]; found {list(chosen.shape)}")
        sampler = make_policy_sampler(self.model, self.horizons)
        params, scalings = jax.device_put((self.params, self.scalings))  # once for all batches

        def sample(rows: np.ndarray, numbers: np.ndarray) -> jax.Array:
            return sampler(params, scalings, rows, numbers, np.uint32(seed))

        actions = sample_rows(sample, observations, chosen, batch_size=self.batch_size)
        if not np.isfinite(actions).all():
            raise UserError(
                "the actions are not finite: the observations are not, or the training diverged"
            )
        return actions

    def act(
        self, observations: np.ndarray, *, seed: int, indices: np.ndarray | None = None
    ) -> np.ndarray:
        """Returns the actions to carry out [n, action horizon, d_a]: a part of `predict`."""
        return self.predict(observations, seed=seed, indices=indices)[:, self.horizons.executed]


@functools.lru_cache  # all policies of a network share one, which is compiled once
def make_policy_sampler(model: nn.Module, horizons: Horizons) -> Callable[..., jax.Array]:
    """Returns the jitted function of one evaluation.

    It is (params, scalings, observations [n, h, d_o], indices [n] uint32, seed [] uint32) ->
    actions [n, H, d_a], in the units of the environment.
    """

    @settled_jax()
    @jax.jit
    def sampler(params, scalings, observations, indices, seed):
        shape = (1, horizons.prediction, len(scalings.action.centre))
        key = samples_key(seed)
        noise = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), shape))(indices)
        scaled = scalings.observation.scaled(observations)
        actions = apply(model, params, noise, scaled)[:, 0]
        return scalings.action.unscaled(jnp.clip(actions, -1, 1))

    return sampler


@settled_jax()
def load_policy(
    name: str | Path,
    *,
    ema_decay: float | None = None,
    step: int | None = None,
    batch_size: int = BATCH_SIZE,
) -> Policy:
    """Reads a policy; the demonstrations need not be there.

    Args:
      name: the workdir of a run of task "policy", a folder for the Hub, or hf://owner/repo.
      ema_decay: which moving average of a run; None for the config's eval.ema_decay.
      step: of the checkpoint of a run; None for the newest.
      batch_size: rows that are computed at once, see `Policy`.

    Raises:
      UserError: there is no such run or folder, no checkpoint yet or of this step, or no such
        average.
    """
    workdir = fetch(name)
    if (weights := read_folder(workdir)) is not None:
        if ema_decay is not None or step is not None:
            raise UserError(f"{name} is one average of one step: leave out ema_decay and step")
        return Policy(**weights._asdict(), batch_size=batch_size)
    config = load_config(workdir)
    if config.task != "policy":
        raise UserError(f"{workdir} is a run of task {config.task!r}; expected 'policy'")
    decay = chosen_decay(config, ema_decay)
    scalings = read_scalings(workdir)
    sizes = PolicySizes(*(len(scaling.centre) for scaling in scalings))
    mesh = meshes.make_mesh(1, 1, devices=jax.local_devices()[:1])
    template = {"state": policy_program(config, sizes, mesh).carry.state}
    at, trees = restored_items(workdir, template, step)
    return policy_of(
        config, scalings, trees["state"], step=at, ema_decay=decay, batch_size=batch_size
    )


def read_scalings(workdir: Path) -> Scalings:
    """Reads the scalings of a run.

    Raises:
      UserError: it has none, or they are damaged.
    """
    path = workdir / "data.json"
    if not path.is_file():
        raise UserError(f"{workdir} holds no policy: there is no {path}")
    return Scalings.from_record(read_json(path).get("scaling"), path)


def policy_of(
    config: ConfigDict,
    scalings: Scalings,
    state: TrainState,
    *,
    step: int,
    ema_decay: float,
    batch_size: int = BATCH_SIZE,
) -> Policy:
    """Returns the policy of a moving average of a training state; see `Policy`."""
    return Policy(
        horizons=horizons_of(config),
        scalings=scalings,
        params=transfer.fetch(state.ema[ema_name(ema_decay)]["network"]),
        model=make_network(config),
        batch_size=batch_size,
        step=step,
        ema_decay=ema_decay,
        config=config,
    )
