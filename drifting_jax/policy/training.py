"""The task "policy": trains on demonstrations, and measures what it has learned."""

import functools
from pathlib import Path
from typing import NamedTuple

from jax.sharding import Mesh

from drifting_jax.config import ConfigDict
from drifting_jax.distributed.agreement import on_all_processes, on_main_process, require_same
from drifting_jax.evaluation.metrics.single_target import table
from drifting_jax.files import write_json
from drifting_jax.policy.demonstrations import read_demonstrations
from drifting_jax.policy.evaluation import measure
from drifting_jax.policy.pictures import chunks_picture
from drifting_jax.policy.policy import Policy, policy_of
from drifting_jax.policy.program import (
    PolicySizes,
    check_config,
    horizons_of,
    policy_program,
)
from drifting_jax.policy.readers import Keys
from drifting_jax.policy.scaling import Scalings
from drifting_jax.policy.windows import WindowSource
from drifting_jax.steps.scaling import scaling_of
from drifting_jax.training import build, stage
from drifting_jax.training.hooks import RunContext
from drifting_jax.training.loop import Hook, Moment
from drifting_jax.training.program import Program
from drifting_jax.training.single_target import drift_labels, keep_data
from drifting_jax.training.stage import Stage
from drifting_jax.workdir import pictures
from drifting_jax.workdir.layout import generator_checkpoints
from drifting_jax.workdir.metrics import read_metrics


class PolicyData(NamedTuple):
    """What a run reads.

    Attributes:
      windows: that it trains on.
      held_out: windows of other episodes, which it only measures; None without any.
      scalings: of the episodes that it trains on.
    """

    windows: WindowSource
    held_out: WindowSource | None
    scalings: Scalings

    @property
    def sizes(self) -> PolicySizes:
        """Dimensions of an observation and of an action."""
        return PolicySizes(self.windows.observation_shape[-1], self.windows.image_shape[-1])


def train(config: ConfigDict, *, workdir: Path, context: RunContext) -> bool:
    """Trains, measures and draws; returns whether it came to the end (else a signal stopped it)."""
    mesh = build.make_mesh(config)
    check_config(config, mesh)
    data = on_all_processes(read_data, config)
    require_same(
        data.windows.fingerprint.encode(),
        "sees other demonstrations than process 0; all must see the same",
    )
    facts, named = {"scaling": data.scalings.record()}, f"the demonstrations in {config.data.path}"
    on_main_process(keep_data, workdir, data.windows, facts, named)
    draw = functools.partial(_draw, config, data, context)
    carry = stage.train(
        Stage(
            program=policy_program(config, data.sizes, mesh),
            folder=generator_checkpoints(workdir),
            batch_size=config.train.conditions,
            save_every=config.train.save_every,
            hooks=[Hook(config.train.sample_every, draw)],
        ),
        config,
        data.windows,
        workdir=workdir,
        context=context,
    )
    if carry is None or context.stops():
        return False
    step, decay = config.train.num_steps, config.eval.ema_decay
    policy = policy_of(config, data.scalings, carry.state, step=step, ema_decay=decay)
    if context.is_main_process:
        records = read_metrics(workdir, stage="policy")
        pictures.write_drift(workdir / "drift.png", records, drift_labels(config))
        found = _measured(config, data, policy)
        print(table(found, "actions from -1 to 1"))
        # Last: it marks the run as complete.
        write_json(workdir / "evaluation.json", {"step": step, **found})
    return True


def program(config: ConfigDict, mesh: Mesh) -> Program:
    """Assembles the step for a dry run; the demonstrations say the sizes.

    Raises:
      UserError: the config does not fit the mesh, or the demonstrations cannot be read.
    """
    check_config(config, mesh)
    return policy_program(config, read_data(config).sizes, mesh)


def read_data(config: ConfigDict) -> PolicyData:
    """Reads the demonstrations of config.data.

    Raises:
      UserError: they cannot be read, or hold no window.
    """
    d, horizons = config.data, horizons_of(config)
    keys = Keys(tuple(d.observation_keys), d.action_key)
    every = read_demonstrations(d.path, format=d.format, keys=keys)
    kept, others = every.split(d.held_out_episodes)
    scalings = Scalings(scaling_of(kept.observations), scaling_of(kept.actions))
    windows = WindowSource(kept, horizons, scalings, neighbours=config.single_target.neighbours)
    held_out = None if others is None else WindowSource(others, horizons, scalings)
    return PolicyData(windows, held_out, scalings)


def _draw(config: ConfigDict, data: PolicyData, context: RunContext, moment: Moment) -> None:
    """Writes samples/policy_chunks_<step>.png."""
    decay = config.eval.ema_decay
    policy = policy_of(config, data.scalings, moment.carry.state, step=moment.step, ema_decay=decay)
    if context.is_main_process:
        picture = chunks_picture(policy, data.held_out or data.windows)
        if picture is not None:
            context.writer.write_image("policy", moment.step, "chunks", picture)


def _measured(config: ConfigDict, data: PolicyData, policy: Policy) -> dict[str, dict[str, float]]:
    """The metrics of both kinds of windows."""
    given = {"training": data.windows, "held_out": data.held_out}
    return {
        name: measure(
            policy, source, conditions=config.eval.conditions, samples=config.eval.samples
        )
        for name, source in given.items()
        if source is not None
    }
