"""Trained generators of pairs: read from a workdir, and asked for images of conditions."""

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
from drifting_jax.files import expanded, read_json
from drifting_jax.models.calls import apply
from drifting_jax.pairs.facts import PairFacts, PairShapes
from drifting_jax.pairs.folders import is_folder, read_folder
from drifting_jax.pairs.program import make_network, pairs_program
from drifting_jax.steps.sampling import sample_rows, to_uint8
from drifting_jax.steps.state import TrainState, ema_name
from drifting_jax.surroundings import settled_jax
from drifting_jax.training.restore import chosen_decay, restored_items
from drifting_jax.weights.files import fetch

PyTree = Any
BATCH_SIZE = 64  # one for all: in a batch of another size, an image may be rounded otherwise


@dataclasses.dataclass(frozen=True)
class PairGenerator:
    """A generator ready to make images of conditions.

    Attributes:
      facts: of the pairs that it learned from.
      params: of the network.
      model: the network.
      step: training steps of its parameters.
      ema_decay: of the moving average that they are.
      config: of its run; None for one of a folder for the Hub.
    """

    facts: PairFacts
    params: PyTree
    model: nn.Module
    step: int
    ema_decay: float
    config: ConfigDict | None = None

    def sample(
        self, conditions: np.ndarray, *, seed: int, indices: np.ndarray | None = None
    ) -> np.ndarray:
        """Returns images [n, h, w, c], uint8 or float32 in [-1, 1] as the ones it learned from.

        Image k depends on conditions[k], the seed and indices[k] alone.

        Args:
          conditions: [n, ...], in the units of the data; [n] if they are single numbers.
          seed: from 0 to 2**32 - 1.
          indices: [n] integers; None for 0 to n - 1.

        Raises:
          ValueError: shapes that do not fit.
          UserError: the conditions or the images are not finite.
        """
        images = self.predict(conditions, seed=seed, indices=indices)
        return np.asarray(to_uint8(jnp.asarray(images))) if self.facts.makes_bytes else images

    def predict(
        self, conditions: np.ndarray, *, seed: int, indices: np.ndarray | None = None
    ) -> np.ndarray:
        """Returns images as `sample`, always float32 in [-1, 1]."""
        conditions = np.asarray(conditions, np.float32)
        if conditions.ndim == 1:
            conditions = conditions[:, None]
        if conditions.shape[1:] != self.facts.shapes.condition:
            raise ValueError(
                f"conditions must be {['n', *self.facts.shapes.condition]}; found "
                f"{list(conditions.shape)}"
            )
        if not np.isfinite(conditions).all():
            raise UserError("conditions must be finite; found others")
        n = len(conditions)
        chosen = np.arange(n) if indices is None else np.asarray(indices)
        if chosen.shape != (n,):
            raise ValueError(f"indices must be [{n}]; found {list(chosen.shape)}")
        sampler = make_pair_sampler(self.model, self.facts.shapes)

        params = jax.device_put(self.params)  # once for all batches

        def sample(rows: np.ndarray, numbers: np.ndarray) -> jax.Array:
            return sampler(params, self.facts.scaling, rows, numbers, np.uint32(seed))

        images = sample_rows(sample, conditions, chosen, batch_size=BATCH_SIZE)
        if not np.isfinite(images).all():
            raise UserError("the images are not finite: the training diverged")
        return images


@functools.lru_cache  # all generators of a network share one, which is compiled once
def make_pair_sampler(model: nn.Module, shapes: PairShapes) -> Callable[..., jax.Array]:
    """Returns the jitted function of one evaluation.

    It is (params, scaling, conditions [n, ...], indices [n] uint32, seed [] uint32) -> images
    [n, h, w, c] in [-1, 1].
    """

    @settled_jax()
    @jax.jit
    def sampler(params, scaling, conditions, indices, seed):
        key, shape = samples_key(seed), (1, *shapes.image)
        noise = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), shape))(indices)
        return jnp.clip(apply(model, params, noise, scaling.scaled(conditions))[:, 0], -1, 1)

    return sampler


def is_pairs(name: str | Path, *, is_run: bool) -> bool:
    """Whether a name is that of a generator of pairs.

    Args:
      name: the workdir of a run, or a folder for the Hub or hf://owner/repo.
      is_run: which of them.

    Raises:
      UserError: a workdir holds no run, or the folder cannot be fetched or is damaged.
    """
    if is_run:
        return load_config(Path(expanded(str(name)))).task == "pairs"
    return is_folder(str(name))


@settled_jax()
def load_pairs(
    name: str | Path,
    *,
    ema_decay: float | None = None,
    step: int | None = None,
) -> PairGenerator:
    """Reads a generator; the pairs need not be there.

    Args:
      name: the workdir of a run of task "pairs", a folder for the Hub, or hf://owner/repo.
      ema_decay: which moving average of a run; None for the config's eval.ema_decay.
      step: of the checkpoint of a run; None for the newest.

    Raises:
      UserError: there is no such run or folder, no checkpoint yet or of this step, or no such
        average.
    """
    workdir = fetch(name)
    if (weights := read_folder(workdir)) is not None:
        if ema_decay is not None or step is not None:
            raise UserError(f"{name} is one average of one step: leave out ema_decay and step")
        return PairGenerator(**weights._asdict())
    config = load_config(workdir)
    if config.task != "pairs":
        raise UserError(f"{workdir} is a run of task {config.task!r}; expected 'pairs'")
    decay = chosen_decay(config, ema_decay)
    path = workdir / "data.json"
    if not path.is_file():
        raise UserError(f"{workdir} holds no generator of pairs: there is no {path}")
    facts = PairFacts.from_record(read_json(path), path)
    mesh = meshes.make_mesh(1, 1, devices=jax.local_devices()[:1])
    template = {"state": pairs_program(config, facts.shapes, mesh).carry.state}
    at, trees = restored_items(workdir, template, step)
    return generator_of(config, facts, trees["state"], step=at, ema_decay=decay)


def generator_of(
    config: ConfigDict,
    facts: PairFacts,
    state: TrainState,
    *,
    step: int,
    ema_decay: float,
) -> PairGenerator:
    """Returns the generator of a moving average of a training state; see `PairGenerator`."""
    return PairGenerator(
        facts=facts,
        params=transfer.fetch(state.ema[ema_name(ema_decay)]["network"]),
        model=make_network(config, facts.shapes),
        step=step,
        ema_decay=ema_decay,
        config=config,
    )
