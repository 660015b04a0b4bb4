"""Generator training: encoder, queue, steps, pictures, checkpoints, and the figures at the end."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from drifting_jax.config import ConfigDict, streams
from drifting_jax.data.sources import Source
from drifting_jax.distributed import meshes
from drifting_jax.errors import UserError
from drifting_jax.models import generators
from drifting_jax.steps import sampling
from drifting_jax.steps.generator import Generator
from drifting_jax.steps.generator_step import GeneratorMetrics, culprit_name, generator_step
from drifting_jax.steps.sample_queue import SampleQueue
from drifting_jax.steps.state import TrainState, create_state, ema_name
from drifting_jax.training import build, data_identity, device_batches, filling, frozen, monitoring
from drifting_jax.training import encoder as train_mae
from drifting_jax.training.loop import RunContext, Stage, run_stage
from drifting_jax.weights.networks import Network
from drifting_jax.workdir.checkpoint import Checkpoints
from drifting_jax.workdir.image_files import image_grid

PyTree = Any

_PICTURES_PER_CLASS = 10
_CLASSES_IN_PICTURES = 10
_LEAST_GRID_PIXELS = 400


def checkpoint_directory(workdir: Path) -> Path:
    """Where a run keeps its generator."""
    return workdir / "checkpoints"


def state_maker(config: ConfigDict, source: Source, mesh: Mesh):
    """A function that makes the initial state, and one that says where its arrays lie."""
    model, optimizer = build.make_generator(config, source), build.generator_optimizer(config)

    def init() -> TrainState:
        params = generators.init_generator(streams.stream_key(config, "generator_init"), model)
        return create_state(params, optimizer, ema_decays=config.train.ema_decays)

    place = functools.partial(meshes.sharding_for_tree, mesh=mesh, rules=config.mesh.rules)
    return init, place


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
    build.check_models(config, source)
    filling.check_source(config, source)
    given = frozen.load_pretrained(config, source)
    monitor = monitoring.make_monitor(config, workdir=workdir, stops=context.stops)
    encoder = train_mae.encoder_params(config, source, mesh, workdir=workdir, context=context)
    if encoder is None:
        return False
    variables, extra, decoder, vae = frozen.place_networks(config, encoder, given, mesh)
    del encoder  # whose decoder would stay on the devices
    feature_function = build.make_feature_function(config, source, extra=extra, vae=decoder)
    images = jax.ShapeDtypeStruct((1, *source.image_shape), jnp.float32)
    names = list(jax.eval_shape(feature_function, variables, images))
    t = config.train
    stage = Stage(
        name="generator",
        num_steps=t.num_steps,
        log_every=config.log_every,
        save_every=t.save_every,
        keep_every=t.keep_every,
        images_per_step=t.labels_per_step * t.generated_per_label,
        max_skipped_in_a_row=t.max_skipped_in_a_row,
    )
    directory = checkpoint_directory(workdir)
    with Checkpoints(directory, keep=t.keep, keep_every=t.keep_every) as checkpoints:
        start, position, state, queue = _start_or_resume(config, source, mesh, checkpoints)
        for name in ("generator", monitoring.STAGE):
            context.writer.truncate(name, start)
        if start >= t.num_steps:
            return True
        context.announce("generator", state.params, start)
        with device_batches.make_batches(
            config,
            source,
            mesh,
            batch_size=config.queue.push_per_step,
            start=position,
            crop=config.data.crop,
            log=workdir,
            stage="generator",
        ) as batches:
            if not start:
                found = filling.fill(
                    queue,
                    batches,
                    source,
                    config.queue.push_per_step,
                    is_main_process=context.is_main_process,
                    stopped=context.stops,
                )
                if found is None:
                    return False
                queue, position = found
                filling.check_queue(config, queue, source.class_names)
            _, complete = run_stage(
                stage,
                (state, queue),
                start=start,
                advance=_make_advance(config, source, variables, feature_function, state, queue),
                batches=batches,
                describe=_make_describe(config),
                state_of=lambda carry: carry[0],
                culprit=lambda number: culprit_name(number, names, config.drift.temperatures),
                items=lambda step, carry: _items(*carry, position + step - start),
                checkpoints=checkpoints,
                context=context,
                on_step=_make_on_step(config, source, mesh, context, vae, monitor),
            )
    return complete


def check_batch(config: ConfigDict, mesh: Mesh) -> None:
    """Makes sure that the rows of a step and the images of a batch split over the mesh."""
    build.microbatches(config, mesh)
    if config.queue.push_per_step % jax.process_count():
        raise UserError(
            f"config.queue.push_per_step must be a multiple of the {jax.process_count()} "
            f"processes; found {config.queue.push_per_step}"
        )
    train_mae.check_batch(config, mesh)


def _items(state: TrainState, queue: SampleQueue, batches_taken: int) -> dict[str, PyTree]:
    """The trees of a checkpoint; the averages by themselves, since samplers read them alone."""
    return {
        "state": state.replace(ema={}),
        "ema": state.ema,
        "queue": queue,
        "position": {"batches": np.int64(batches_taken)},
    }


def _start_or_resume(
    config: ConfigDict, source: Source, mesh: Mesh, checkpoints: Checkpoints
) -> tuple[int, int, TrainState, SampleQueue]:
    """Steps done, batches taken, state and queue."""
    init, place = state_maker(config, source, mesh)
    queue = build.make_queue(config, source, mesh)
    template = _items(meshes.template(init, shardings=place), queue, 0)
    restored = checkpoints.restore_latest(template, padded=("queue",))
    if restored is None:
        return 0, 0, meshes.init_sharded(init, shardings=place), queue
    step, trees = restored
    state = trees["state"].replace(ema=trees["ema"])
    return step, int(trees["position"]["batches"]), state, trees["queue"]


def _make_advance(config, source, variables, feature_function, state, queue) -> Callable:
    """The jitted step on the carry (state, queue), which it donates."""
    step = functools.partial(
        generator_step,
        key=streams.stream_key(config, "generator_steps"),
        model=build.make_generator(config, source),
        feature_function=feature_function,
        optimizer=build.generator_optimizer(config),
        settings=build.make_generator_step(config, queue.mesh),
    )
    where = jax.tree.map(lambda x: x.sharding, (state, queue))
    jitted = jax.jit(
        step, donate_argnums=(0, 1), out_shardings=(*where, meshes.replicated(queue.mesh))
    )

    def advance(carry, batch):
        state, queue, metrics = jitted(*carry, variables, batch)
        return (state, queue), metrics

    return advance


def _make_describe(config: ConfigDict) -> Callable[[GeneratorMetrics], dict[str, float]]:
    schedule = build.generator_schedule(config)
    return lambda metrics: describe_metrics(
        metrics,
        temperatures=config.drift.temperatures,
        learning_rate=float(schedule(int(metrics.updates))),
    )


def describe_metrics(
    metrics: GeneratorMetrics, *, temperatures: tuple[float, ...], learning_rate: float
) -> dict[str, float]:
    """Scalars of one line of metrics.jsonl.

    Per feature: the raw drift mean square of each temperature, the distance scale S, and
    `diversity`, the mean distance between generated samples over that to positives, which is near 1
    when the samples vary as the data does and falls to 0 when they collapse. `.../mean` averages
    over the features that are in the loss; `features_left_out` counts the others.
    """
    scalars = {
        "loss": float(metrics.loss),
        "grad_norm": float(metrics.gradient_norm),
        "learning_rate": learning_rate,
        "cfg_scale": float(metrics.cfg_scale),
    }
    used = {n: s for n, s in metrics.statistics.items() if not bool(s.is_degenerate)}
    scalars["features_left_out"] = len(metrics.statistics) - len(used)
    diversity = {
        name: float(s.generated_distance / np.maximum(s.positive_distance, 1e-12))
        for name, s in used.items()
    }
    if used:
        for i, temperature in enumerate(temperatures):
            drifts = [float(s.drift_mean_square[i]) for s in used.values()]
            scalars[f"drift/mean/{temperature:g}"] = float(np.mean(drifts))
        scalars["diversity/mean"] = float(np.mean(list(diversity.values())))
    for name, s in metrics.statistics.items():
        for i, temperature in enumerate(temperatures):
            scalars[f"drift/{name}/{temperature:g}"] = float(s.drift_mean_square[i])
        scalars[f"distance_scale/{name}"] = float(s.distance_scale)
    return scalars | {f"diversity/{name}": value for name, value in diversity.items()}


def _make_on_step(
    config: ConfigDict,
    source: Source,
    mesh: Mesh,
    context: RunContext,
    vae: Network | None,
    monitor: monitoring.Monitor | None,
) -> Callable[[int, tuple], None]:
    """Grids of samples, and figures, of the average that config.eval names."""
    if config.data.latent and vae is None:
        if context.is_main_process:
            print("no pictures of samples: config.vae.path does not say what decodes the latents")
        return lambda step, carry: None
    model, e = build.make_generator(config, source), config.eval
    sampler = sampling.make_sampler(model, mesh, vae=vae.model if vae else None)

    def on_step(step: int, carry: tuple) -> None:
        draws = step % config.train.sample_every == 0 or step == config.train.num_steps
        measures = monitor is not None and step % e.every == 0
        if not draws and not measures:
            return
        params = carry[0].ema[ema_name(e.ema_decay)]
        generator = Generator(
            step=step,
            ema_decay=e.ema_decay,
            params={"generator": params, "vae": vae.variables} if vae else params,
            class_names=source.class_names,
            mesh=mesh,
            sampler=sampler,
            makes_pixels=True,
        )
        if draws:
            _write_grid(config, generator, context)
        if measures and (scalars := monitor(generator)):
            context.writer.write_scalars(monitoring.STAGE, step, scalars)

    return on_step


def _write_grid(config: ConfigDict, generator: Generator, context: RunContext) -> None:
    """Samples from noise, styles and labels that stay the same all along the run."""
    classes = range(min(len(generator.class_names), _CLASSES_IN_PICTURES))
    labels, indices = sampling.class_major(classes, _PICTURES_PER_CLASS)
    images = sampling.sample_all(
        generator.sampler,
        generator.params,
        streams.stream_key(config, "pictures"),
        labels,
        indices,
        cfg_scale=1.0,
        batch_size=len(labels),
        mesh=generator.mesh,
    ).images
    grid = image_grid(images, _PICTURES_PER_CLASS, least=_LEAST_GRID_PIXELS)
    context.writer.write_image("generator", generator.step, "samples", grid)
