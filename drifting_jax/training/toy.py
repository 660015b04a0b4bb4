"""The two-dimensional toy (5.1): an MLP that drifts from a bad start onto a target, in pictures."""

import functools
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from drifting_jax.config import ConfigDict, streams
from drifting_jax.data.points import PointsSource, sample_target
from drifting_jax.distributed import meshes, transfer
from drifting_jax.errors import UserError
from drifting_jax.evaluation.toy import measure_toy, toy_json, toy_table
from drifting_jax.files import write_bytes, write_json
from drifting_jax.method import losses
from drifting_jax.method.fields import FieldOptions
from drifting_jax.models.mlp import MLP
from drifting_jax.steps.generator_step import culprit_name, drift_culprit
from drifting_jax.steps.state import TrainState, apply_gradients, create_state, ema_name
from drifting_jax.training import build, device_batches
from drifting_jax.training.loop import RunContext, Stage, run_stage
from drifting_jax.workdir import pictures
from drifting_jax.workdir.checkpoint import Checkpoints
from drifting_jax.workdir.metrics import read_metrics

PyTree = Any

_START_CENTRES = {"collapsed": (-1.5, 0.0), "between": (0.0, 0.0), "far": (5.0, 5.0)}
_START_SPREAD = 0.1
_FRAME_POINTS = 1024
_FRAMES = 60


@flax.struct.dataclass
class ToyMetrics:
    """`losses.drifting_loss` on the points themselves, with the norm of its gradient.

    `updates` counts those before this step.
    """

    updates: jax.Array
    loss: jax.Array
    gradient_norm: jax.Array
    statistics: losses.DriftingStatistics


def toy_step(
    state: TrainState,
    batch: Mapping[str, jax.Array],
    key: jax.Array,
    *,
    model: MLP,
    noise_features: int,
    generated: int,
    optimizer: optax.GradientTransformation,
    temperatures: tuple[float, ...],
    affinity_floor: float,
    options: FieldOptions,
    ema_decays: tuple[float, ...],
) -> tuple[TrainState, ToyMetrics]:
    """One step: fresh noise, fresh real points [p, 2], the drifting loss on raw coordinates."""
    noise = jax.random.normal(jax.random.fold_in(key, state.step), (generated, noise_features))
    positive = batch["point"][None, :, None, :]  # [1, p, 1, 2]

    def loss_function(params):
        points = model.apply({"params": params}, noise)[None, :, None, :]  # [1, g, 1, 2]
        return losses.drifting_loss(
            points,
            positive,
            temperatures=temperatures,
            affinity_floor=affinity_floor,
            options=options,
        )

    (loss, statistics), gradients = jax.value_and_grad(loss_function, has_aux=True)(state.params)
    norm = optax.tree.norm(gradients)
    metrics = ToyMetrics(state.step - state.skipped, loss, norm, statistics)
    state = apply_gradients(
        state,
        gradients,
        optimizer,
        ema_decays=ema_decays,
        finite=jnp.isfinite(loss) & jnp.isfinite(norm),
        culprit=drift_culprit({"points": statistics}),
    )
    return state, metrics


def train(config: ConfigDict, *, workdir: Path, context: RunContext) -> bool:
    """Trains, measures and draws; returns whether it came to the end (else a signal stopped it)."""
    mesh = build.make_mesh(config)
    _check_batch(config, mesh)
    source = PointsSource(config.data.target, config.data.num_samples, seed=config.seed)
    model = MLP(widths=tuple(config.model.widths))
    init, place = _state_maker(config, model, mesh)
    keep, keep_every = config.train.keep, config.train.keep_every
    with Checkpoints(workdir / "checkpoints", keep=keep, keep_every=keep_every) as checkpoints:
        template = meshes.template(init, shardings=place)
        restored = checkpoints.restore_latest({"state": template})
        if restored is None:
            start, state = 0, meshes.init_sharded(init, shardings=place)
        else:
            start, state = restored[0], restored[1]["state"]
        context.writer.truncate("toy", start)
        context.announce("toy", state.params, start)
        on_step = _make_frames(config, model, workdir, context)
        if start == 0:
            on_step(0, state)
        with device_batches.make_batches(
            config, source, mesh, batch_size=config.train.positives, start=start
        ) as batches:
            state, complete = run_stage(
                _stage(config),
                state,
                start=start,
                advance=_make_advance(config, model, place(template), mesh),
                batches=batches,
                describe=_make_describe(config),
                state_of=lambda state: state,
                culprit=lambda n: culprit_name(n, ["points"], config.drift.temperatures),
                items=lambda step, state: {"state": state},
                checkpoints=checkpoints,
                context=context,
                on_step=on_step,
            )
    if not complete or context.stops():
        return False
    sample = _sampler(config, model, state)
    if context.is_main_process:
        n = config.eval.num_samples
        records = measure_toy(
            sample,
            target=config.data.target,
            num_samples=n,
            directions=config.eval.directions,
            seed=config.seed,
        )
        print(toy_table(records, num_samples=n))
        draw_pictures(config, workdir)
        # Last: it marks the run as complete.
        found = toy_json(records, num_samples=n) | {"step": config.train.num_steps}
        write_json(workdir / "evaluation.json", found)
    return True


def _stage(config: ConfigDict) -> Stage:
    t = config.train
    return Stage(
        name="toy",
        num_steps=t.num_steps,
        log_every=config.log_every,
        save_every=t.save_every,
        keep_every=t.keep_every,
        images_per_step=t.generated,
        max_skipped_in_a_row=t.max_skipped_in_a_row,
    )


def _check_batch(config: ConfigDict, mesh: Mesh) -> None:
    if config.train.positives % mesh.size:
        raise UserError(
            f"config.train.positives must be a multiple of the {mesh.size} devices; "
            f"found {config.train.positives}"
        )


def _state_maker(config: ConfigDict, model: MLP, mesh: Mesh):
    optimizer = build.generator_optimizer(config)

    def init() -> TrainState:
        key = streams.stream_key(config, "toy_init")
        params = model.init(key, jnp.zeros((1, config.model.noise_features)))["params"]
        output = params["output"]
        # Where q starts is the bias of the last layer, and how wide it is the layer's scale.
        params["output"] = {
            "kernel": _START_SPREAD * output["kernel"],
            "bias": jnp.asarray(_START_CENTRES[config.start], jnp.float32),
        }
        return create_state(params, optimizer, ema_decays=config.train.ema_decays)

    place = functools.partial(meshes.sharding_for_tree, mesh=mesh, rules=config.mesh.rules)
    return init, place


def _make_advance(config: ConfigDict, model: MLP, shardings: PyTree, mesh: Mesh) -> Callable:
    step = functools.partial(
        toy_step,
        key=streams.stream_key(config, "toy_steps"),
        model=model,
        noise_features=config.model.noise_features,
        generated=config.train.generated,
        optimizer=build.generator_optimizer(config),
        temperatures=tuple(config.drift.temperatures),
        affinity_floor=config.drift.affinity_floor,
        options=build.field_options(config),
        ema_decays=tuple(config.train.ema_decays),
    )
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, meshes.replicated(mesh)))


def _make_describe(config: ConfigDict) -> Callable[[ToyMetrics], dict[str, float]]:
    schedule = build.generator_schedule(config)

    def describe(metrics: ToyMetrics) -> dict[str, float]:
        s = metrics.statistics
        drifts = dict(zip(config.drift.temperatures, s.drift_mean_square, strict=True))
        return {
            "loss": float(metrics.loss),
            "grad_norm": float(metrics.gradient_norm),
            "learning_rate": float(schedule(int(metrics.updates))),
            **{f"drift/mean/{t:g}": float(value) for t, value in drifts.items()},
            "distance_scale": float(s.distance_scale),
            "diversity/mean": float(s.generated_distance / np.maximum(s.positive_distance, 1e-12)),
        }

    return describe


def _sampler(config: ConfigDict, model: MLP, state: TrainState) -> Callable[[int, int], np.ndarray]:
    """(seed, n) -> [n, 2] points of the averaged generator."""
    params = transfer.fetch(state.ema[ema_name(config.eval.ema_decay)])

    def sample(seed: int, n: int) -> np.ndarray:
        noise = jax.random.normal(jax.random.key(seed), (n, config.model.noise_features))
        return np.asarray(model.apply({"params": params}, noise))

    return sample


def _make_frames(
    config: ConfigDict, model: MLP, workdir: Path, context: RunContext
) -> Callable[[int, TrainState], None]:
    """Keeps points of fixed noise at the steps of the animation, early ones closer together."""
    steps = frame_steps(config.train.num_steps)
    noise = jax.random.normal(
        streams.stream_key(config, "pictures"), (_FRAME_POINTS, config.model.noise_features)
    )
    points_of = jax.jit(lambda params: model.apply({"params": params}, noise))
    folder = workdir / "frames"

    def on_step(step: int, state: TrainState) -> None:
        if step not in steps:
            return
        points = transfer.fetch(points_of(state.params))
        if context.is_main_process:
            folder.mkdir(exist_ok=True)
            data = io.BytesIO()
            np.save(data, points)
            write_bytes(folder / f"{step:08d}.npy", data.getvalue())

    return on_step


def frame_steps(num_steps: int) -> set[int]:
    """The steps of the animation: 0, then closer together early on, when most happens."""
    return {round(num_steps * (i / (_FRAMES - 1)) ** 2) for i in range(_FRAMES)}


def draw_pictures(config: ConfigDict, workdir: Path) -> None:
    """drift.gif, field.png and drift.png, of what the run left in its workdir."""
    rng = np.random.default_rng(config.seed)
    target = sample_target(config.data.target, rng, _FRAME_POINTS)
    wanted = frame_steps(config.train.num_steps)
    frames = {
        int(path.stem): np.load(path)
        for path in sorted((workdir / "frames").glob("*.npy"))
        if int(path.stem) in wanted
    }
    pictures.write_animation(workdir / "drift.gif", frames, target)
    pictures.write_field(
        workdir / "field.png",
        frames,
        target,
        temperature=max(config.drift.temperatures),
        affinity_floor=config.drift.affinity_floor,
        options=build.field_options(config),
    )
    pictures.write_drift(
        workdir / "drift.png", read_metrics(workdir, stage="toy"), config.drift.temperatures
    )
