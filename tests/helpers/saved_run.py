"""A run that was saved before its first step, without any training."""

from pathlib import Path

import jax
import numpy as np
import tiny_config

from drifting_jax.config import resolve, save_config
from drifting_jax.data.sources import make_source
from drifting_jax.training import build, programs
from drifting_jax.workdir.checkpoint import Checkpoints
from drifting_jax.workdir.layout import encoder_checkpoints, generator_checkpoints

STEPS = {"generator": 7, "encoder": 10}


def save_run(folder: Path) -> Path:
    """Writes the workdir, with checkpoints of generator and encoder that hold averages alone.

    They are random: the output of a new generator is zero.
    """
    config = tiny_config.get_config()
    config.encoder.train.num_steps = 10
    config = resolve(config)
    save_config(folder, config)
    (folder / "metrics.jsonl").write_text("")
    source, mesh = make_source(config.data, "train"), build.make_mesh(config)
    rng = np.random.default_rng(0)
    for program, directory in (
        (programs.generator_program, generator_checkpoints(folder)),
        (programs.encoder_program, encoder_checkpoints(folder)),
    ):
        found = program(config, source, mesh)
        if found.name == "generator":
            ema = found.first_carry().state.ema
            ema = jax.tree.map(lambda x: (rng.normal(0, 0.2, x.shape) + x).astype(x.dtype), ema)
        else:  # nothing is compiled for it
            ema = jax.tree.map(
                lambda x: jax.device_put(rng.normal(0, 0.2, x.shape).astype(x.dtype), x.sharding),
                found.carry.state.ema,
            )
        with Checkpoints(directory, keep=1) as checkpoints:
            checkpoints.save(STEPS[found.name], {"ema": ema})
    return folder
