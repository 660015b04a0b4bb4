"""Loads the generator that the flags of a command name: of a run, or of weights without a run."""

from pathlib import Path
from typing import Any

from absl import flags

from drifting_jax.distributed import processes
from drifting_jax.errors import UserError
from drifting_jax.steps.generator import Generator
from drifting_jax.surroundings import check_devices
from drifting_jax.training.restore import load_generator, load_run


def define_source_flags() -> None:
    """Registers the flags that say where a generator comes from."""
    flags.DEFINE_string("workdir", "", "Directory of the run.")
    flags.DEFINE_string(
        "weights",
        "",
        "Instead of a run: a folder of weights, ours or of the release, or hf://owner/repo.",
    )
    flags.DEFINE_string("vae", "", "What decodes latents: folder or hf://….")


def define_average_flags() -> None:
    """Registers the flags that say which weights of a run are meant."""
    flags.DEFINE_float("ema_decay", None, "Which moving average; default: the config's.")
    flags.DEFINE_float("ema_sigma", None, "Instead: relative width of a power-function average.")
    flags.DEFINE_integer("step", None, "Of the checkpoint; default: the newest.", lower_bound=0)


def check_source(values: Any) -> None:
    """Checks that the flags that name weights go together.

    Args:
      values: flags with `workdir`, `weights`, `ema_decay`, `ema_sigma` and `step`.

    Raises:
      UserError: they do not.
    """
    for name in ("ema_decay", "ema_sigma"):
        if values.weights and getattr(values, name) is not None:
            raise UserError(f"--{name} goes with --workdir: weights by themselves are one average")
    if values.weights and values.step is not None:
        raise UserError("--step goes with --workdir: weights by themselves are of one step")
    if bool(values.workdir) == bool(values.weights):
        raise UserError("expected one of --workdir and --weights")


def chosen_generator(values: Any) -> Generator:
    """Starts JAX's devices and reads a generator.

    Args:
      values: as of `check_source`, with `vae`.

    Raises:
      UserError: as `check_source`, `load_run` and `load_generator`.
    """
    check_source(values)
    check_devices()
    if values.weights:
        return load_generator(values.weights, vae=values.vae)
    return chosen_run(values)


def chosen_run(values: Any) -> Generator:
    """Reads the generator of a run; prints how well an average of --ema_sigma is met.

    Args:
      values: as of `chosen_generator`, without `weights`.

    Raises:
      UserError: as `load_run`.
    """
    run = load_run(
        Path(values.workdir),
        ema_decay=values.ema_decay,
        ema_sigma=values.ema_sigma,
        vae=values.vae,
        step=values.step,
    )
    if run.ema_sigma is not None and processes.is_main_process():
        words = f"its profile has a relative error of {run.fit_error:.2g}"
        print(f"average of {run.average} at step {run.step}; {words}", flush=True)
    return run
