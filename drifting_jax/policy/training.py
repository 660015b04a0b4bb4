"""The task "policy": trains on demonstrations, and measures what it has learned."""

import functools
from pathlib import Path
from typing import Any, NamedTuple

from jax.sharding import Mesh

from drifting_jax.config import ConfigDict
from drifting_jax.distributed.agreement import on_all_processes
from drifting_jax.errors import UserError
from drifting_jax.evaluation.metrics.single_target import table
from drifting_jax.files import write_json
from drifting_jax.policy.demonstrations import read_demonstrations
from drifting_jax.policy.evaluation import measure
from drifting_jax.policy.folders import Weights, read_folder
from drifting_jax.policy.networks import kind_of, make_network
from drifting_jax.policy.pictures import chunks_picture
from drifting_jax.policy.policy import Policy, policy_of, read_scalings
from drifting_jax.policy.program import (
    PolicySizes,
    check_config,
    horizons_of,
    policy_program,
)
from drifting_jax.policy.readers import Keys
from drifting_jax.policy.scaling import Scalings, frozen_lines
from drifting_jax.policy.windows import WindowSource
from drifting_jax.steps.scaling import scaling_of
from drifting_jax.training import build, stage
from drifting_jax.training.data_identity import keep_record
from drifting_jax.training.hooks import RunContext
from drifting_jax.training.initial_states import differences
from drifting_jax.training.loop import Hook, Moment
from drifting_jax.training.program import Program
from drifting_jax.training.single_target import drift_labels, params_of
from drifting_jax.training.stage import Stage
from drifting_jax.weights.files import fetch
from drifting_jax.weights.own_folders import module_fields
from drifting_jax.workdir import pictures
from drifting_jax.workdir.layout import generator_checkpoints
from drifting_jax.workdir.metrics import read_metrics
from drifting_jax.workdir.opening import has_checkpoints

PyTree = Any


class PolicyData(NamedTuple):
    """What a run reads.

    Attributes:
      windows: that it trains on.
      held_out: windows of other episodes, which it only measures; None without any.
      scalings: of the episodes that it trains on.
      notes: lines for a person, about what of the demonstrations has no effect.
    """

    windows: WindowSource
    held_out: WindowSource | None
    scalings: Scalings
    notes: tuple[str, ...] = ()

    @property
    def sizes(self) -> PolicySizes:
        """Dimensions of an observation and of an action."""
        return PolicySizes(self.windows.observation_shape[-1], self.windows.image_shape[-1])


class _Start(NamedTuple):
    """What a run does not begin anew.

    Attributes:
      scalings: of the policy to start from, or those that a run began with; None for new ones.
      params: of the network to start from; None for random ones or those of a checkpoint.
      goes_on: whether the run has a checkpoint, and keeps the scalings as they are.
    """

    scalings: Scalings | None = None
    params: PyTree | None = None
    goes_on: bool = False


def train(config: ConfigDict, *, workdir: Path, context: RunContext) -> bool:
    """Trains, measures and draws; returns whether it came to the end (else a signal stopped it)."""
    mesh = build.make_mesh(config)
    check_config(config, mesh)
    start = on_all_processes(_read_start, config, workdir)
    data = on_all_processes(read_data, config, start.scalings, start.goes_on)
    if context.is_main_process:
        for note in data.notes:
            print(note, flush=True)
    identity = {"count": len(data.windows), "fingerprint": data.windows.fingerprint}
    keep_record(config, workdir, identity, more={"scaling": data.scalings.record()})
    draw = functools.partial(_draw, config, data, context)
    carry = stage.train(
        Stage(
            program=policy_program(config, data.sizes, mesh),
            folder=generator_checkpoints(workdir),
            batch_size=config.train.conditions,
            save_every=config.train.save_every,
            hooks=[Hook(config.train.sample_every, draw)],
            params=None if start.params is None else params_of(config, start.params),
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
        write_json(workdir / "evaluation.json", {"step": step, "ema_decay": decay, **found})
    return True


def program(config: ConfigDict, mesh: Mesh) -> Program:
    """Assembles the step for a dry run; the demonstrations say the sizes.

    Raises:
      UserError: the config does not fit the mesh, the demonstrations cannot be read, or the policy
        to start from does not fit them or the config.
    """
    check_config(config, mesh)
    weights = _policy_to_start_from(config)
    data = read_data(config, None if weights is None else weights.scalings)
    return policy_program(config, data.sizes, mesh)


def read_data(
    config: ConfigDict, earlier: Scalings | None = None, goes_on: bool = False
) -> PolicyData:
    """Reads the demonstrations of config.data.

    Args:
      config: of the run.
      earlier: scalings of the policy to start from, whose ranges those of the run include.
      goes_on: whether the earlier scalings are those of the run itself, which it keeps.

    Raises:
      UserError: they cannot be read, hold no window, or have other sizes than that policy.
    """
    d, horizons = config.data, horizons_of(config)
    keys = Keys(tuple(d.observation_keys), d.action_key)
    every = read_demonstrations(d.path, format=d.format, keys=keys)
    kept, others = every.split(d.held_out_episodes)
    values = kept.observations, kept.actions
    if earlier is not None:
        ours, theirs = [x.shape[1] for x in values], [len(x.centre) for x in earlier]
        if ours != theirs:
            raise UserError(
                f"the policy in {config.model.init_from} (config.model.init_from) has observations "
                f"of {theirs[0]} and actions of {theirs[1]} numbers; the demonstrations in "
                f"{d.path} have {ours[0]} and {ours[1]}"
            )
    own = earlier if goes_on else None
    scalings = own or Scalings(*map(scaling_of, values, earlier or (None, None)))
    windows = WindowSource(kept, horizons, scalings, neighbours=config.single_target.neighbours)
    held_out = None if others is None else WindowSource(others, horizons, scalings)
    notes = frozen_lines(scalings, *values)
    if short := windows.too_short + (0 if held_out is None else held_out.too_short):
        notes.append(
            f"warning: {short} of {len(every.episode_ends)} episodes are left out: they have fewer "
            f"than the {horizons.shortest} steps that the horizons need"
        )
    return PolicyData(windows, held_out, scalings, tuple(notes))


def _read_start(config: ConfigDict, workdir: Path) -> _Start:
    """Where a run begins: with `model.init_from`, a checkpoint comes before that policy."""
    if config.model.init_from and has_checkpoints(workdir):
        return _Start(read_scalings(workdir), goes_on=True)
    weights = _policy_to_start_from(config)
    return _Start() if weights is None else _Start(weights.scalings, weights.params)


def _policy_to_start_from(config: ConfigDict) -> Weights | None:
    """The policy in config.model.init_from; None if it is empty.

    Raises:
      UserError: there is no policy, or one that differs from the config.
    """
    name = config.model.init_from
    if not name:
        return None
    weights = read_folder(fetch(name))
    if weights is None:
        raise UserError(
            f"{name} (config.model.init_from) is no folder of a policy: "
            "python -m drifting_jax.convert --to=hub writes one of a workdir"
        )
    model = make_network(config)
    theirs = {"kind": kind_of(weights.model)} | weights.horizons._asdict()
    ours = {"kind": kind_of(model)} | horizons_of(config)._asdict()
    found = differences(theirs, ours)
    if type(model) is type(weights.model):
        found += differences(module_fields(weights.model), module_fields(model))
    if found:
        raise UserError(
            f"the policy in {name} (config.model.init_from) differs from the config: "
            f"{', '.join(found)}"
        )
    return weights


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
            policy,
            source,
            conditions=config.eval.conditions,
            samples=config.eval.samples,
            seed=config.seed,
        )
        for name, source in given.items()
        if source is not None
    }
