"""Loads the generator that the flags of a command name: of a run, or of weights without a run."""

from pathlib import Path
from typing import Any

from drifting_jax.errors import UserError
from drifting_jax.steps.generator import Generator
from drifting_jax.surroundings import check_devices
from drifting_jax.training.restore import load_generator, load_run


def chosen_generator(values: Any) -> Generator:
    """Starts JAX's devices and reads a generator.

    Args:
      values: flags with `workdir`, `weights`, `vae`, `ema_decay` and `step`.

    Raises:
      UserError: the flags do not go together, or as `load_run` and `load_generator`.
    """
    if values.weights and values.ema_decay is not None:
        raise UserError("--ema_decay goes with --workdir: weights by themselves are one average")
    if values.weights and values.step is not None:
        raise UserError("--step goes with --workdir: weights by themselves are of one step")
    if bool(values.workdir) == bool(values.weights):
        raise UserError("expected one of --workdir and --weights")
    check_devices()
    if values.weights:
        return load_generator(values.weights, vae=values.vae)
    return load_run(
        Path(values.workdir), ema_decay=values.ema_decay, vae=values.vae, step=values.step
    )
