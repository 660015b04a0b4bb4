"""Encoder pre-training: the masked autoencoder in whose features the drift is computed (A.3)."""

import functools
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from drifting_jax.config import ConfigDict, load_config
from drifting_jax.data.sources import DataSpec, Source, spec_of
from drifting_jax.distributed.agreement import on_main_process
from drifting_jax.errors import UserError
from drifting_jax.steps.state import TrainState, ema_name
from drifting_jax.training import build, data_identity, initial_states, programs, stage
from drifting_jax.training.hooks import RunContext
from drifting_jax.training.stage import Stage
from drifting_jax.weights.networks import load_network
from drifting_jax.workdir.checkpoint import Checkpoints
from drifting_jax.workdir.layout import encoder_checkpoints
from drifting_jax.workdir.opening import mark_complete

PyTree = Any


def train(config: ConfigDict, *, workdir: Path, context: RunContext) -> bool:
    """Trains an encoder by itself, from where it stands; returns whether it is complete.

    Raises:
      UserError: the batch does not fit the mesh, the network does not fit the data, or the data is
        missing.
    """
    mesh = build.make_mesh(config)
    check_batch(config, mesh)
    source = data_identity.open_source(config, workdir)
    print_data(source, context)
    build.check_models(config, spec_of(source))
    if encoder_params(config, source, mesh, workdir=workdir, context=context) is None:
        return False
    on_main_process(mark_complete, workdir, config.encoder.train.num_steps)
    return True


def print_data(source: Source, context: RunContext) -> None:
    """Prints what data was found, and the files that were skipped."""
    if context.is_main_process:
        print("\n".join(data_identity.describe_data(source)), flush=True)


def is_trained_here(config: ConfigDict) -> bool:
    """Whether a generator's run has an encoder that it trains first."""
    return config.encoder.kind != "none" and not config.encoder.path


def check_batch(config: ConfigDict, mesh: Mesh) -> None:
    """Makes sure that every part of a batch splits over the mesh."""
    t = config.encoder.train
    if t.batch_size % (mesh.size * t.microbatches):
        raise UserError(
            f"config.encoder.train.batch_size must be a multiple of {mesh.size} devices times "
            f"{t.microbatches} microbatches; found {t.batch_size}"
        )


def encoder_params(
    config: ConfigDict, source: Source, mesh: Mesh, *, workdir: Path, context: RunContext
) -> PyTree | None:
    """Returns the frozen encoder's parameters: those of config.encoder.path, or trained here.

    Returns:
      The moving average of the parameters, or None if a signal stopped the training.

    Raises:
      UserError: config.encoder.path holds no trained encoder, or one of another size.
    """
    if config.encoder.path:
        return _load(config, spec_of(source), mesh, config.encoder.path, workdir)
    return _train(config, source, mesh, workdir, context)


def _load(config: ConfigDict, spec: DataSpec, mesh: Mesh, trained: str, workdir: Path) -> PyTree:
    """Loads the encoder of another run and keeps a copy, so that a resume uses the same weights."""
    templates = {"ema": _template(config, spec, mesh).ema}
    with Checkpoints(encoder_checkpoints(workdir), keep=1) as copies:
        restored = copies.restore_latest(templates)
        if restored is None:
            step, params = read_trained(config, spec, mesh, trained)
            copies.save(step, {"ema": {ema_name(config.encoder.train.ema_decay): params}})
            return params
    return _average(config, restored[1]["ema"])


def read_trained(
    config: ConfigDict, spec: DataSpec, mesh: Mesh, trained: str | Path
) -> tuple[int, PyTree]:
    """Returns the steps and the parameters of an encoder whose training is complete.

    Args:
      config: of the run that asks; its encoder section says what is expected.
      spec: shape and classes of its samples.
      mesh: where the parameters go.
      trained: workdir of the run that trained it, or what `load_network` reads.

    Raises:
      UserError: there is no encoder, its training is not complete, or it has other sizes.
    """
    if encoder_checkpoints(Path(trained)).is_dir():
        return _of_run(config, {"ema": _template(config, spec, mesh).ema}, Path(trained))
    if not str(trained).startswith("hf://") and not Path(trained).is_dir():
        raise UserError(
            "config.encoder.path must be the workdir of a run with a trained encoder, a folder "
            f"with an autoencoder's weights, or hf://owner/repo; {trained} is none of them"
        )
    network = load_network(trained, kind="autoencoder")
    template = _template(config, spec, mesh).params
    found = jax.tree.map(lambda x: (x.shape, x.dtype), network.variables["params"])
    groups = network.model.groups == config.encoder.groups  # in no shape, but in every feature
    if not groups or found != jax.tree.map(lambda x: (x.shape, x.dtype), template):
        raise UserError(
            f"the encoder in {trained} has other sizes than config.encoder: it has width "
            f"{network.model.width}, blocks {tuple(network.model.blocks)}, groups "
            f"{network.model.groups}, input_patch_size {network.model.input_patch_size}, channels "
            f"{network.model.in_channels}, classes {network.model.num_classes}"
        )
    shardings = jax.tree.map(lambda x: x.sharding, template)
    return network.step, jax.device_put(network.variables["params"], shardings)


def _of_run(config: ConfigDict, templates: dict[str, PyTree], trained: Path) -> tuple[int, PyTree]:
    theirs = load_config(trained).encoder
    with Checkpoints(encoder_checkpoints(trained), keep=1, read_only=True) as checkpoints:
        restored = checkpoints.restore_latest(templates)
    step = restored[0] if restored else 0
    if restored is None or (not theirs.path and step < theirs.train.num_steps):
        raise UserError(
            f"the encoder of {trained} has {step} of its {theirs.train.num_steps} steps: run "
            "that to its end first"
        )
    return step, _average(config, restored[1]["ema"])


def _template(config: ConfigDict, spec: DataSpec, mesh: Mesh) -> TrainState:
    init = functools.partial(initial_states.init_encoder, config, spec)
    return initial_states.state_template(config, mesh, init)


def _average(config: ConfigDict, ema: dict[str, PyTree]) -> PyTree:
    return ema[ema_name(config.encoder.train.ema_decay)]


def _train(
    config: ConfigDict, source: Source, mesh: Mesh, workdir: Path, context: RunContext
) -> PyTree | None:
    t = config.encoder.train
    _note_crop(config, source, context)
    carry = stage.train(
        Stage(
            program=programs.encoder_program(config, spec_of(source), mesh),
            folder=encoder_checkpoints(workdir),
            batch_size=t.batch_size,
            save_every=t.save_every,
            crop=t.crop,
        ),
        config,
        source,
        workdir=workdir,
        context=context,
    )
    return None if carry is None else _average(config, carry.state.ema)


def _note_crop(config: ConfigDict, source: Source, context: RunContext) -> None:
    """Latents were cropped when they were prepared; says so if the config asks for another crop."""
    wanted = config.encoder.train.crop
    made = source.facts.crop or wanted
    if context.is_main_process and made != wanted:
        print(
            f"note: these latents are of {made} crops; config.encoder.train.crop={wanted!r} takes "
            f"latents that were prepared with --crop={wanted}"
        )
