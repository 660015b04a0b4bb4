"""A trained run, read back from its workdir for sampling and evaluation."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from drifting_jax import build, distributed, sampling, train
from drifting_jax.checkpoint import Checkpoints
from drifting_jax.config import ConfigDict, load_config
from drifting_jax.data.sources import Source, make_source
from drifting_jax.errors import UserError
from drifting_jax.state import ema_name


@dataclasses.dataclass(frozen=True)
class Run:
    """A generator of one checkpoint, ready to sample.

    Attributes:
      config: as stored in the workdir.
      step: of the checkpoint.
      ema_decay: of the moving average.
      params: the moving average asked for.
      source: the training split.
      mesh: all devices at hand.
      sampler: `sampling.make_sampler`'s.
    """

    config: ConfigDict
    step: int
    ema_decay: float
    params: Any
    source: Source
    mesh: Mesh
    sampler: sampling.Sampler

    def sample(
        self,
        labels: np.ndarray,
        indices: np.ndarray,
        *,
        seed: int,
        cfg_scale: float,
        batch_size: int = 256,
    ) -> np.ndarray:
        """Images [n, h, w, c] uint8; image i depends on seed, labels[i], indices[i], cfg_scale."""
        return sampling.sample_all(
            self.sampler,
            self.params,
            jax.random.fold_in(jax.random.key(seed), build.STREAMS["samples"]),
            labels,
            indices,
            cfg_scale=cfg_scale,
            batch_size=batch_size,
            mesh=self.mesh,
        )


def load_run(workdir: Path, *, ema_decay: float | None = None) -> Run:
    """Reads the newest checkpoint of a generator's workdir.

    Args:
      workdir: of a run of task "generator".
      ema_decay: which moving average; None for the config's eval.ema_decay.

    Raises:
      UserError: there is no such run, no checkpoint yet, or no such average.
    """
    config = load_config(workdir)
    if config.task != "generator":
        raise UserError(f"{workdir} is a run of task {config.task!r}; expected 'generator'")
    decay = config.eval.ema_decay if ema_decay is None else ema_decay
    if decay not in config.train.ema_decays:
        raise UserError(
            f"the run keeps the averages of decay {tuple(config.train.ema_decays)}; found {decay}"
        )
    directory = train.checkpoint_directory(workdir)
    if not directory.is_dir():
        raise UserError(f"{workdir} has no generator yet: its training has not come to {directory}")
    source = make_source(config.data, "train")
    mesh = distributed.make_mesh()
    init, place = train.state_maker(config, source, mesh)
    with Checkpoints(directory, keep=1, read_only=True) as checkpoints:
        restored = checkpoints.restore_latest(
            {"ema": distributed.template(init, shardings=place).ema}
        )
    if restored is None:
        raise UserError(f"{directory} holds no checkpoint yet: train longer, or wait for a save")
    step, trees = restored
    return Run(
        config=config,
        step=step,
        ema_decay=decay,
        params=trees["ema"][ema_name(decay)],
        source=source,
        mesh=mesh,
        sampler=sampling.make_sampler(build.make_generator(config, source), mesh),
    )
