"""The task "policy": trains on demonstrations, and measures what it has learned."""

from pathlib import Path

from jax.sharding import Mesh

from drifting_jax.config import ConfigDict
from drifting_jax.distributed.agreement import on_main_process
from drifting_jax.errors import UserError
from drifting_jax.files import read_json, write_json
from drifting_jax.policy.demonstrations import read_demonstrations
from drifting_jax.policy.program import PolicySizes, check_config, horizons_of, policy_program
from drifting_jax.policy.scaling import Scalings, scaling_of
from drifting_jax.policy.windows import WindowSource
from drifting_jax.training import build, stage
from drifting_jax.training.hooks import RunContext
from drifting_jax.training.program import Program
from drifting_jax.training.stage import Stage
from drifting_jax.workdir.layout import generator_checkpoints
from drifting_jax.workdir.opening import has_checkpoints


def train(config: ConfigDict, *, workdir: Path, context: RunContext) -> bool:
    """Trains and measures; returns whether it came to the end (else a signal stopped it)."""
    mesh = build.make_mesh(config)
    check_config(config, mesh)
    source, scalings = open_windows(config)
    on_main_process(_compare_or_write, config, workdir, source, scalings)
    carry = stage.train(
        Stage(
            program=policy_program(config, sizes_of(source), mesh),
            folder=generator_checkpoints(workdir),
            batch_size=config.train.conditions,
            save_every=config.train.save_every,
        ),
        config,
        source,
        workdir=workdir,
        context=context,
    )
    if carry is None or context.stops():
        return False
    return True


def program(config: ConfigDict, mesh: Mesh) -> Program:
    """Assembles the step for a dry run; the demonstrations say the sizes.

    Raises:
      UserError: the config does not fit the mesh, or the demonstrations cannot be read.
    """
    check_config(config, mesh)
    source, _ = open_windows(config)
    return policy_program(config, sizes_of(source), mesh)


def open_windows(config: ConfigDict) -> tuple[WindowSource, Scalings]:
    """Reads the demonstrations, and returns their windows and their scaling.

    Raises:
      UserError: they cannot be read, or hold no window.
    """
    found = read_demonstrations(config.data.path, format=config.data.format)
    scalings = Scalings(scaling_of(found.observations), scaling_of(found.actions))
    return WindowSource(found, horizons_of(config), scalings), scalings


def sizes_of(source: WindowSource) -> PolicySizes:
    """Returns the dimensions of the observations and actions of windows."""
    return PolicySizes(source.observation_shape[-1], source.image_shape[-1])


def _compare_or_write(
    config: ConfigDict, workdir: Path, source: WindowSource, scalings: Scalings
) -> None:
    """Compares the demonstrations with data.json, or writes that file if nothing was saved yet."""
    path = workdir / "data.json"
    found = {
        "count": len(source),
        "fingerprint": source.fingerprint,
        "scaling": scalings.record(),
    }
    began = read_json(path) if path.is_file() else {}
    if began.get("fingerprint") == found["fingerprint"] and began.get("count") == found["count"]:
        return
    if began and has_checkpoints(workdir):
        raise UserError(
            f"the demonstrations in {config.data.path} are not what the run in {workdir} began "
            f"with: {began.get('count')} windows with fingerprint {began.get('fingerprint')} then, "
            f"{found['count']} with {found['fingerprint']} now"
        )
    write_json(path, found)
