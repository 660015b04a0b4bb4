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

    Those of the generator are random: the output of a new one is zero.
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
        ema = found.first_carry().state.ema
        if found.name == "generator":
            ema = jax.tree.map(lambda x: (rng.normal(0, 0.2, x.shape) + x).astype(x.dtype), ema)
        with Checkpoints(directory, keep=1) as checkpoints:
            checkpoints.save(STEPS[found.name], {"ema": ema})
    return folder
