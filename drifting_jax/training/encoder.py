"""Encoder pre-training: the masked autoencoder whose features carry the drifting loss (A.3)."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from drifting_jax.config import ConfigDict, load_config, streams
from drifting_jax.data.sources import Source
from drifting_jax.distributed import meshes
from drifting_jax.errors import UserError
from drifting_jax.files import write_json
from drifting_jax.steps.encoder_step import encoder_step
from drifting_jax.steps.state import TrainState, create_state, ema_name
from drifting_jax.training import build, data_identity, device_batches
from drifting_jax.training.loop import RunContext, Stage, run_stage
from drifting_jax.weights.networks import load_network
from drifting_jax.workdir.checkpoint import Checkpoints

PyTree = Any

COMPLETE = "complete.json"  # marks a workdir whose run ends without figures


def checkpoint_directory(workdir: Path) -> Path:
    """Where a run keeps the encoder that it trained."""
    return workdir / "encoder" / "checkpoints"


def train(config: ConfigDict, *, workdir: Path, context: RunContext) -> bool:
    """Trains an encoder by itself, from where it stands; returns whether it is complete.

    Raises:
      UserError: the batch does not fit the mesh, the network does not fit the data, or the data is
        missing.
    """
    mesh = build.make_mesh(config)
    check_batch(config, mesh)
    source = data_identity.open_source(config, workdir)
    build.check_models(config, source)
    if encoder_params(config, source, mesh, workdir=workdir, context=context) is None:
        return False
    if context.is_main_process:  # it marks the run as complete
        write_json(workdir / COMPLETE, {"step": config.encoder.train.num_steps})
    return True


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
    """The frozen encoder's parameters: of config.encoder.path, or trained here, or resumed.

    Returns:
      The moving average of the parameters, or None where a signal stopped the training.

    Raises:
      UserError: config.encoder.path holds no trained encoder, or one of another size.
    """
    if config.encoder.path:
        return _load(config, source, mesh, config.encoder.path, workdir)
    return _train(config, source, mesh, workdir, context)


def _load(config: ConfigDict, source: Source, mesh: Mesh, trained: str, workdir: Path) -> PyTree:
    """The encoder of another run, which this workdir keeps a copy of: a resume finds the same."""
    templates = _templates(config, source, mesh)
    with Checkpoints(checkpoint_directory(workdir), keep=1) as copies:
        restored = copies.restore_latest(templates)
        if restored is None:
            step, params = read_trained(config, source, mesh, trained)
            copies.save(step, {"ema": {ema_name(config.encoder.train.ema_decay): params}})
            return params
    return _average(config, restored[1]["ema"])


def read_trained(
    config: ConfigDict, source: Source, mesh: Mesh, trained: str | Path
) -> tuple[int, PyTree]:
    """Steps and parameters of an encoder that is done.

    Args:
      config: of the run that asks; its encoder section says what is expected.
      source: likewise.
      mesh: where the parameters go.
      trained: workdir of the run that trained it, or what `load_network` reads.

    Raises:
      UserError: there is none, it is not done, or it has other sizes.
    """
    if checkpoint_directory(Path(trained)).is_dir():
        return _of_run(config, _templates(config, source, mesh), Path(trained))
    if not str(trained).startswith("hf://") and not Path(trained).is_dir():
        raise UserError(
            "config.encoder.path must be the workdir of a run with a trained encoder, a folder "
            f"with an autoencoder's weights, or hf://owner/repo; {trained} is none of them"
        )
    network = load_network(trained, kind="autoencoder")
    init, place = state_maker(config, source, mesh)
    shapes = jax.eval_shape(init).params
    found = jax.tree.map(lambda x: (x.shape, x.dtype), network.variables["params"])
    groups = network.model.groups == config.encoder.groups  # in no shape, but in every feature
    if not groups or found != jax.tree.map(lambda x: (x.shape, x.dtype), shapes):
        raise UserError(
            f"the encoder in {trained} has other sizes than config.encoder: it has width "
            f"{network.model.width}, blocks {tuple(network.model.blocks)}, groups "
            f"{network.model.groups}, input_patch_size {network.model.input_patch_size}, channels "
            f"{network.model.in_channels}, classes {network.model.num_classes}"
        )
    return network.step, jax.device_put(network.variables["params"], place(shapes))


def _of_run(config: ConfigDict, templates: dict[str, PyTree], trained: Path) -> tuple[int, PyTree]:
    theirs = load_config(trained).encoder
    with Checkpoints(checkpoint_directory(trained), keep=1, read_only=True) as checkpoints:
        restored = checkpoints.restore_latest(templates)
    step = restored[0] if restored else 0
    if restored is None or (not theirs.path and step < theirs.train.num_steps):
        raise UserError(
            f"the encoder of {trained} has {step} of its {theirs.train.num_steps} steps: run "
            "that to its end first"
        )
    return step, _average(config, restored[1]["ema"])


def _templates(config: ConfigDict, source: Source, mesh: Mesh) -> dict[str, PyTree]:
    init, place = state_maker(config, source, mesh)
    return {"ema": meshes.template(init, shardings=place).ema}


def _average(config: ConfigDict, ema: dict[str, PyTree]) -> PyTree:
    return ema[ema_name(config.encoder.train.ema_decay)]


def state_maker(config: ConfigDict, source: Source, mesh: Mesh):
    """A function that makes the initial state, and one that says where its arrays lie."""
    model, optimizer = build.make_encoder(config, source), build.encoder_optimizer(config)

    def init() -> TrainState:
        image = jnp.zeros((1, *source.image_shape))
        height, width = (side // model.input_patch_size for side in source.image_shape[:2])
        params = model.init(
            streams.stream_key(config, "encoder_init"), image, jnp.zeros((1, height, width))
        )["params"]
        return create_state(params, optimizer, ema_decays=(config.encoder.train.ema_decay,))

    place = functools.partial(meshes.sharding_for_tree, mesh=mesh, rules=config.mesh.rules)
    return init, place


def _train(
    config: ConfigDict, source: Source, mesh: Mesh, workdir: Path, context: RunContext
) -> PyTree | None:
    t = config.encoder.train
    stage = Stage(
        name="encoder",
        num_steps=t.num_steps,
        log_every=config.log_every,
        save_every=t.save_every,
        keep_every=config.train.keep_every,
        images_per_step=t.batch_size,
        max_skipped_in_a_row=config.train.max_skipped_in_a_row,
    )
    _note_crop(config, source, context)
    init, place = state_maker(config, source, mesh)
    directory, kept = checkpoint_directory(workdir), config.train
    with Checkpoints(directory, keep=kept.keep, keep_every=kept.keep_every) as checkpoints:
        template = meshes.template(init, shardings=place)
        restored = checkpoints.restore_latest(_items(template))
        if restored is None:
            start, state = 0, meshes.init_sharded(init, shardings=place)
        else:
            start, trees = restored
            state = trees["state"].replace(ema=trees["ema"])
        context.writer.truncate("encoder", start)
        if start >= t.num_steps:
            return _average(config, state.ema)
        context.announce("encoder", state.params, start)
        schedule = build.encoder_schedule(config)
        step = jax.jit(
            functools.partial(
                encoder_step,
                key=streams.stream_key(config, "encoder_steps"),
                model=build.make_encoder(config, source),
                optimizer=build.encoder_optimizer(config),
                settings=build.make_encoder_step(config),
            ),
            donate_argnums=0,
            out_shardings=(place(template), meshes.replicated(mesh)),
        )

        def describe(metrics: dict[str, np.ndarray]) -> dict[str, float]:
            values = {name: float(value) for name, value in metrics.items()}
            return {"learning_rate": float(schedule(int(values.pop("updates")))), **values}

        with device_batches.make_batches(
            config,
            source,
            mesh,
            batch_size=t.batch_size,
            start=start,
            crop=t.crop,
            log=workdir,
            stage="encoder",
        ) as batches:
            state, complete = run_stage(
                stage,
                state,
                start=start,
                advance=step,
                batches=batches,
                describe=describe,
                state_of=lambda state: state,
                culprit=lambda number: "the gradient" if number else "the loss",
                items=lambda step, state: _items(state),
                checkpoints=checkpoints,
                context=context,
            )
    return _average(config, state.ema) if complete else None


def _note_crop(config: ConfigDict, source: Source, context: RunContext) -> None:
    """Latents were cropped when they were prepared, whatever the config asks for."""
    wanted = config.encoder.train.crop
    made = source.facts.crop or wanted
    if context.is_main_process and made != wanted:
        print(
            f"note: these latents are of {made} crops; config.encoder.train.crop={wanted!r} takes "
            f"latents that were prepared with --crop={wanted}"
        )


def _items(state: TrainState) -> dict[str, PyTree]:
    """The trees of a checkpoint; the averages by themselves, since they are read alone."""
    return {"state": state.replace(ema={}), "ema": state.ema}
