"""Generator training: the encoder, the frozen networks, the queue, then the steps and pictures."""

import functools
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from drifting_jax.config import ConfigDict
from drifting_jax.config.streams import stream_key
from drifting_jax.data.sources import SMALL_SOURCES, Source, make_source, spec_of
from drifting_jax.distributed.agreement import on_all_processes, on_main_process
from drifting_jax.errors import UserError
from drifting_jax.models.vae import VAE
from drifting_jax.steps import sampling
from drifting_jax.steps.generator import Generator
from drifting_jax.steps.sample_queue import SampleQueue
from drifting_jax.steps.state import ema_name
from drifting_jax.training import (
    build,
    data_identity,
    dataset,
    encoder,
    filling,
    frozen,
    initial_states,
    monitoring,
    programs,
    stage,
)
from drifting_jax.training.device_batches import GlobalBatches
from drifting_jax.training.hooks import RunContext
from drifting_jax.training.loop import Hook, Moment
from drifting_jax.training.memory_plan import memory_plan
from drifting_jax.training.snapshots import snapshot_hooks
from drifting_jax.training.stage import Stage
from drifting_jax.weights.networks import Network
from drifting_jax.workdir.image_files import image_grid
from drifting_jax.workdir.layout import generator_checkpoints

_PICTURES_PER_CLASS = 10  # of a single class as many as of ten
_CLASSES_IN_PICTURES = 10
_LEAST_GRID_PIXELS = 400


def train(config: ConfigDict, *, workdir: Path, context: RunContext) -> bool:
    """Trains the encoder, unless it is given or done, and the generator, from where they stand.

    Returns:
      Whether the training is complete; if not, a signal stopped it after a save.

    Raises:
      UserError: the batch does not fit the mesh, a network does not fit the data, the data is
        missing or too little, or the run diverged.
    """
    mesh = build.make_mesh(config)
    check_batch(config, mesh)
    source = data_identity.open_source(config, workdir)
    encoder.print_data(source, context)
    build.check_models(config, spec_of(source))
    filling.check_source(config, source, workdir)
    if config.queue.kind == "dataset":
        dataset.check_fits(spec_of(source), mesh)
    if config.data.source in SMALL_SOURCES:  # the evaluation at the end needs it
        on_main_process(_require_test_split, config)
    pretrained = frozen.load_pretrained(config, spec_of(source))
    start = None  # a checkpoint is what a run goes on with
    if not on_main_process(_has_checkpoint, workdir):
        start = on_all_processes(initial_states.read_start, config, spec_of(source))
    monitor = monitoring.make_monitor(config, workdir=workdir, stops=context.stops)
    params = None
    if config.encoder.kind != "none":
        params = encoder.encoder_params(config, source, mesh, workdir=workdir, context=context)
        if params is None:
            return False
    variables, extras, decoder, vae = frozen.place_networks(config, params, pretrained, mesh)
    del params  # its decoder would stay on the devices
    program = programs.generator_program(config, spec_of(source), mesh, extras=extras, vae=decoder)
    fill, samples = None, None
    if config.queue.kind == "dataset":
        samples = _load(config, source, mesh, workdir, context)
    else:
        push = filling.make_push(variables, build.make_nearness(config, spec_of(source)))
        fill = functools.partial(_fill, config, source, workdir, context, push)
    trained = stage.train(
        Stage(
            program=program,
            folder=generator_checkpoints(workdir),
            batch_size=config.queue.push_per_step,
            save_every=config.train.save_every,
            crop=config.data.crop,
            frozen=variables,
            hooks=[
                *_hooks(config, source, mesh, context, vae, monitor),
                *snapshot_hooks(config, workdir=workdir, writes=context.is_main_process),
            ],
            names=(monitoring.STAGE,),
            fill=fill,
            dataset=samples,
            params=start,
        ),
        config,
        source,
        workdir=workdir,
        context=context,
    )
    return trained is not None


def _has_checkpoint(workdir: Path) -> bool:
    return any(step.name.isdecimal() for step in generator_checkpoints(workdir).glob("*"))


def _require_test_split(config: ConfigDict) -> None:
    """Raises UserError if the test split of small images cannot be opened."""
    make_source(config.data, "test")


def check_batch(config: ConfigDict, mesh: Mesh) -> None:
    """Makes sure that the rows of a step and the images of a batch split over the mesh."""
    memory_plan(config, mesh)
    pushes = config.queue.kind == "class"
    if pushes and config.queue.push_per_step % jax.process_count():
        raise UserError(
            f"config.queue.push_per_step must be a multiple of the {jax.process_count()} "
            f"processes; found {config.queue.push_per_step}"
        )
    if encoder.is_trained_here(config):
        encoder.check_batch(config, mesh)


def _load(
    config: ConfigDict, source: Source, mesh: Mesh, workdir: Path, context: RunContext
) -> dataset.Batch:
    """Reads the whole data set, after the checks that filling a queue would do."""
    filling.check_after_encoder(config, source, workdir)
    batch = dataset.load(source, mesh, is_main_process=context.is_main_process)
    filling.check_labels(config, np.asarray(batch["label"]), source.class_names)
    return batch


def _fill(
    config: ConfigDict,
    source: Source,
    workdir: Path,
    context: RunContext,
    push: filling.Push,
    queue: SampleQueue,
    batches: GlobalBatches,
) -> tuple[SampleQueue, int] | None:
    """Fills the queue and checks it; None if a signal stopped it."""
    filling.check_after_encoder(config, source, workdir)
    filled = filling.fill(
        queue,
        batches,
        source,
        config.queue.push_per_step,
        push=push,
        is_main_process=context.is_main_process,
        stopped=context.stops,
    )
    if filled is not None:
        filling.check_queue(config, filled[0], source.class_names)
    return filled


def _hooks(
    config: ConfigDict,
    source: Source,
    mesh: Mesh,
    context: RunContext,
    vae: Network[VAE] | None,
    monitor: monitoring.Monitor | None,
) -> list[Hook]:
    """Returns the hooks that draw and measure the average that config.eval names."""
    if config.data.latent and vae is None:
        if context.is_main_process:
            print("no pictures of samples: config.vae.path does not say what decodes the latents")
        return []
    e = config.eval
    model, decoder = build.make_generator(config, spec_of(source)), vae.model if vae else None
    sampler = sampling.make_sampler(model, mesh, vae=decoder)

    def generator_at(moment: Moment) -> Generator:
        params = moment.carry.state.ema[ema_name(e.ema_decay)]
        return Generator(
            step=moment.step,
            ema_decay=e.ema_decay,
            params={"generator": params, "vae": vae.variables} if vae else params,
            class_names=source.class_names,
            mesh=mesh,
            sampler=sampler,
            model=model,
            vae=decoder,
            makes_pixels=True,
        )

    def draw(moment: Moment) -> None:
        _write_grid(config, generator_at(moment), context)

    def measure(moment: Moment) -> None:
        if monitor and (scalars := monitor(generator_at(moment))):
            context.writer.write_scalars(monitoring.STAGE, moment.step, scalars)

    hooks = [Hook(config.train.sample_every, draw)]
    if monitor is not None:
        hooks.append(Hook(e.every, measure, at_end=False))
    return hooks


def _write_grid(config: ConfigDict, generator: Generator, context: RunContext) -> None:
    """Writes samples of noise, styles and labels that stay the same throughout the run."""
    classes = range(min(len(generator.class_names), _CLASSES_IN_PICTURES))
    per_class = _PICTURES_PER_CLASS * (_CLASSES_IN_PICTURES if len(classes) == 1 else 1)
    labels, indices = sampling.class_major(classes, per_class)
    images = sampling.sample_all(
        generator.sampler,
        generator.params,
        stream_key(config, "pictures"),
        labels,
        indices,
        cfg_scale=1.0,
        batch_size=len(labels),
        mesh=generator.mesh,
    ).images
    grid = image_grid(images, _PICTURES_PER_CLASS, least=_LEAST_GRID_PIXELS)
    context.writer.write_image("generator", generator.step, "samples", grid)
