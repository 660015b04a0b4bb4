"""The two-dimensional toy (5.1): an MLP that drifts from a bad start onto a target, in pictures."""

import functools
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from drifting_jax.config import ConfigDict, load_config
from drifting_jax.config.streams import root_key, stream_key
from drifting_jax.data.points import PointsSource, sample_target
from drifting_jax.distributed import meshes, transfer
from drifting_jax.errors import UserError, first_line
from drifting_jax.evaluation.toy import measure_toy, toy_json, toy_table
from drifting_jax.files import write_bytes, write_json
from drifting_jax.method.fields.table import drift_names
from drifting_jax.models.calls import apply
from drifting_jax.models.mlp import MLP
from drifting_jax.steps.state import TrainState, ema_name
from drifting_jax.surroundings import settled_jax
from drifting_jax.training import build, programs, stage
from drifting_jax.training.hooks import RunContext
from drifting_jax.training.loop import Hook
from drifting_jax.training.stage import Stage
from drifting_jax.workdir import pictures
from drifting_jax.workdir.checkpoint import Checkpoints
from drifting_jax.workdir.layout import generator_checkpoints
from drifting_jax.workdir.metrics import read_metrics

_FRAME_POINTS = 1024
_FRAMES = 60


def train(config: ConfigDict, *, workdir: Path, context: RunContext) -> bool:
    """Trains, measures and draws; returns whether it came to the end (else a signal stopped it)."""
    mesh = build.make_mesh(config)
    check_batch(config, mesh)
    source = PointsSource(config.data.target, config.data.num_samples, seed=config.seed)
    model = MLP(widths=tuple(config.model.widths))
    keep_frame = _make_frames(config, model, workdir, context)
    carry = stage.train(
        Stage(
            program=programs.toy_program(config, mesh),
            folder=workdir / "checkpoints",
            batch_size=config.train.positives,
            save_every=config.train.save_every,
            hooks=[Hook(1, lambda moment: keep_frame(moment.step, moment.carry.state))],
            begin=lambda carry: keep_frame(0, carry.state),
        ),
        config,
        source,
        workdir=workdir,
        context=context,
    )
    if carry is None or context.stops():
        return False
    params = transfer.fetch(carry.state.ema[ema_name(config.eval.ema_decay)])
    sample = functools.partial(_sample, config, functools.partial(apply, model), params)
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


def check_batch(config: ConfigDict, mesh: Mesh) -> None:
    """Makes sure that the real points of a step split over the mesh."""
    if config.train.positives % mesh.size:
        raise UserError(
            f"config.train.positives must be a multiple of the {mesh.size} devices; "
            f"found {config.train.positives}"
        )


class Toy(NamedTuple):
    """A trained toy.

    Attributes:
      config: of its run.
      step: training steps of its parameters.
      samplers: for each decay in `train.ema_decays`, (seed, n) -> [n, 2] float32 points of this
        average.
    """

    config: ConfigDict
    step: int
    samplers: dict[float, Callable[[int, int], np.ndarray]]


@settled_jax()
def load_toy(workdir: Path) -> Toy:
    """Reads the newest checkpoint of a toy's workdir.

    Raises:
      UserError: there is no such run, or no checkpoint yet.
    """
    config = load_config(workdir)
    if config.task != "toy":
        raise UserError(f"{workdir} is a run of task {config.task!r}; expected 'toy'")
    mesh = meshes.make_mesh(1, 1, devices=jax.local_devices()[:1])
    template = {"state": programs.toy_program(config, mesh).carry.state}
    directory = generator_checkpoints(workdir)
    with Checkpoints(directory, keep=1, read_only=True) as checkpoints:
        restored = checkpoints.restore_latest(template) if directory.is_dir() else None
    if restored is None:
        raise UserError(f"{directory} holds no checkpoint yet: train longer, or wait for a save")
    step, trees = restored
    averages = transfer.fetch(trees["state"].ema)
    points_of = jax.jit(functools.partial(apply, MLP(widths=tuple(config.model.widths))))
    samplers: dict[float, Callable[[int, int], np.ndarray]] = {
        decay: functools.partial(_sample, config, points_of, averages[ema_name(decay)])
        for decay in config.train.ema_decays
    }
    return Toy(config, step, samplers)


def _sample(
    config: ConfigDict, points_of: Callable[..., jax.Array], params: Any, seed: int, n: int
) -> np.ndarray:
    """Returns [n, 2] points of a seed; points_of: (params, noise) -> points."""
    noise = jax.random.normal(root_key(seed), (n, config.model.noise_features))
    return np.asarray(points_of(params, noise))


def _make_frames(
    config: ConfigDict, model: MLP, workdir: Path, context: RunContext
) -> Callable[[int, TrainState], None]:
    """Returns a function that keeps points of fixed noise at the steps of the animation."""
    steps = frame_steps(config.train.num_steps)
    noise = jax.random.normal(
        stream_key(config, "pictures"), (_FRAME_POINTS, config.model.noise_features)
    )
    points_of = jax.jit(lambda params: apply(model, params, noise))
    folder = workdir / "frames"

    def keep_frame(step: int, state: TrainState) -> None:
        if step not in steps:
            return
        points = transfer.fetch(points_of(state.params))
        if context.is_main_process:
            folder.mkdir(exist_ok=True)
            data = io.BytesIO()
            np.save(data, points)
            write_bytes(folder / f"{step:08d}.npy", data.getvalue())

    return keep_frame


def frame_steps(num_steps: int) -> set[int]:
    """Returns the steps of the animation: from 0 on, denser early, where most happens."""
    return {round(num_steps * (i / (_FRAMES - 1)) ** 2) for i in range(_FRAMES)}


def read_frames(config: ConfigDict, workdir: Path) -> dict[int, np.ndarray]:
    """Returns the generated points [n, 2] float32 that a run has kept, by step, in order.

    Raises:
      UserError: a file cannot be read.
    """
    frames = {}
    for step in sorted(frame_steps(config.train.num_steps)):
        path = workdir / "frames" / f"{step:08d}.npy"
        if path.exists():
            frames[step] = _read_points(path)
    return frames


def _read_points(path: Path) -> np.ndarray:
    try:
        points = np.load(path)
    except Exception as error:  # NumPy parses the header as Python and lets all its errors out
        raise UserError(f"{path} cannot be read: {first_line(error)}") from None
    shape: tuple[int, ...] = getattr(points, "shape", ())
    dtype = getattr(points, "dtype", None)
    if len(shape) != 2 or not shape[0] or shape[1] != 2 or dtype != np.float32:
        raise UserError(f"{path} must hold points [n, 2] float32; found {list(shape)} {dtype}")
    return points


def draw_pictures(config: ConfigDict, workdir: Path) -> None:
    """drift.gif, field.png and drift.png, of what the run left in its workdir."""
    rng = np.random.default_rng(config.seed)
    target = sample_target(config.data.target, rng, _FRAME_POINTS)
    frames = read_frames(config, workdir)
    pictures.write_animation(workdir / "drift.gif", frames, target)
    pictures.write_field(
        workdir / "field.png",
        frames,
        target,
        options=build.drift_options(config),
    )
    drifts = drift_names(build.drift_options(config))
    pictures.write_drift(workdir / "drift.png", read_metrics(workdir, stage="toy"), drifts)
