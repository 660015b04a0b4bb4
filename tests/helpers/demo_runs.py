"""Workdirs of a generator and of a toy, saved with random averages and without any training."""

import functools
from pathlib import Path

import jax
import numpy as np
import tiny_config

from drifting_jax.config import base_config, resolve, save_config
from drifting_jax.data.sources import make_source, spec_of
from drifting_jax.training import build, initial_states, programs
from drifting_jax.workdir.checkpoint import Checkpoints
from drifting_jax.workdir.layout import generator_checkpoints

STEP = 40
DECAYS = (0.9, 0.99)


def save_generator(workdir: Path) -> Path:
    """Writes the workdir of a generator of digits; the output of a new one would be zero."""
    config = resolve(tiny_config.get_config())
    save_config(workdir, config)
    spec = spec_of(make_source(config.data, "train"))
    init = functools.partial(initial_states.init_generator, config, spec)
    template = initial_states.state_template(config, build.make_mesh(config), init)
    rng = np.random.default_rng(0)

    def random(x):
        return jax.device_put(rng.normal(0, 0.2, x.shape).astype(x.dtype), x.sharding)

    with Checkpoints(generator_checkpoints(workdir), keep=1) as checkpoints:
        checkpoints.save(STEP, {"ema": jax.tree.map(random, template.ema)})
    return workdir


def save_toy(workdir: Path) -> Path:
    """Writes the workdir of a toy, with three frames that move to the right."""
    config = base_config("toy")
    config.mesh.data = 1
    config.optim.warmup_steps = 5
    config.model.noise_features, config.model.widths = 4, (8,)
    config.train.num_steps, config.train.ema_decays, config.eval.ema_decay = STEP, DECAYS, 0.99
    config = resolve(config)
    save_config(workdir, config)
    program = programs.toy_program(config, build.make_mesh(config))
    with Checkpoints(generator_checkpoints(workdir), keep=1) as checkpoints:
        checkpoints.save(STEP, program.checkpoint_items(program.first_carry(), 0))
    (workdir / "frames").mkdir()
    for step in (0, 1, STEP):
        points = np.random.default_rng(1).normal(step / STEP, 0.1, (20, 2)).astype(np.float32)
        np.save(workdir / "frames" / f"{step:08d}.npy", points)
    return workdir
