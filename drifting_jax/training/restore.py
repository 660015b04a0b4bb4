"""Reads trained generators back: from the workdir of a run, or from weights without a run."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from drifting_jax.config import ConfigDict, load_config
from drifting_jax.data import class_names
from drifting_jax.data.sources import DataSpec
from drifting_jax.distributed import meshes
from drifting_jax.errors import UserError
from drifting_jax.files import expanded
from drifting_jax.steps import sampling
from drifting_jax.steps.generator import Generator
from drifting_jax.steps.state import TrainState, ema_name
from drifting_jax.surroundings import settled_jax
from drifting_jax.training import build, data_identity, initial_states
from drifting_jax.training.snapshots import Snapshots, open_snapshots
from drifting_jax.training.tasks import hint_of
from drifting_jax.weights.networks import load_network, load_vae
from drifting_jax.workdir import layout
from drifting_jax.workdir.checkpoint import Checkpoints
from drifting_jax.workdir.snapshots import snapshot_steps

PyTree = Any
_WIDTHS = {0.03, 0.05, 0.07, 0.1, 0.14, 0.2}  # that `load_averages` makes, where snapshots allow


@settled_jax()
def load_generator(name: str, *, vae: str = "") -> Generator:
    """Reads a generator without a run: an artifact of the paper's release, or a folder of ours.

    Args:
      name: what `load_network` takes.
      vae: the same for the VAE that decodes latents; empty for a generator of pixels.

    Raises:
      UserError: there is no generator, or it makes latents and there is no VAE.
    """
    network = load_network(name, kind="generator")
    model, params, decoder = network.model, network.variables["params"], None
    if vae:
        found = load_vae(vae)
        decoder, params = found.model, {"generator": params, "vae": found.variables}
    out = model.out_channels
    if decoder is None and out not in (1, 3):
        raise UserError(
            f"{name} makes latents of {out} channels: say with --vae what decodes them to pixels, "
            "such as --vae=hf://stabilityai/sd-vae-ft-mse"
        )
    if decoder is not None and decoder.latent_channels != out:
        raise UserError(
            f"{vae} decodes latents of {decoder.latent_channels} channels; {name} makes {out}"
        )
    mesh = meshes.make_mesh()
    return Generator(
        step=network.step,
        ema_decay=network.ema_decay,
        params=jax.device_put(params, meshes.replicated(mesh)),
        class_names=network.class_names or _names_of(model.num_classes),
        mesh=mesh,
        sampler=sampling.make_sampler(model, mesh, vae=decoder),
        model=model,
        vae=decoder,
        makes_pixels=True,
        alpha_range=network.alpha_range,
    )


def _names_of(num_classes: int) -> list[str]:
    """Returns the names of ImageNet's classes if there are as many, else numbers."""
    if num_classes == class_names.NUM_CLASSES:
        return list(class_names.class_table())
    return [str(label) for label in range(num_classes)]


class _Run(NamedTuple):
    """A workdir of a generator, and what says the shapes of its parameters."""

    workdir: Path
    config: ConfigDict
    source: DataSpec
    class_names: Sequence[str]
    mesh: Mesh


@settled_jax()
def load_run(
    workdir: str | Path,
    *,
    ema_decay: float | None = None,
    ema_sigma: float | None = None,
    vae: str = "",
    step: int | None = None,
) -> Generator:
    """Reads a checkpoint, or snapshots, of a generator's workdir; its data need not be there.

    Args:
      workdir: of a run of task "generator".
      ema_decay: which moving average; None for the config's eval.ema_decay.
      ema_sigma: relative width of a power-function average instead, which is made of snapshots.
      vae: what `load_network` takes for the VAE that decodes latents; empty for the config's
        vae.path. Without any, the generator makes latents, which `Generator.sample` refuses.
      step: of the checkpoint, or of the last snapshot; None for the newest.

    Raises:
      UserError: there is no such run, no checkpoint or snapshot yet or of this step, or no such
        average.
    """
    if ema_decay is not None and ema_sigma is not None:
        raise UserError(
            f"expected one of ema_decay and ema_sigma; found {ema_decay:g} and {ema_sigma:g}"
        )
    run = _opened(workdir)
    if ema_sigma is not None:
        snapshots = open_snapshots(run.workdir, step=step)
        params, error = _of_width(run, snapshots, ema_sigma)
        found = _generator(run, params, step=snapshots.steps[-1], vae=vae)
        return dataclasses.replace(found, ema_sigma=ema_sigma, fit_error=error)
    decay = chosen_decay(run.config, ema_decay)
    at, averages = _of_checkpoint(run, step)
    return _generator(run, averages[ema_name(decay)], step=at, ema_decay=decay, vae=vae)


def chosen_decay(config: ConfigDict, ema_decay: float | None) -> float:
    """Returns the decay of an average of a run; None stands for the config's eval.ema_decay.

    Raises:
      UserError: the run keeps no such average.
    """
    decay = config.eval.ema_decay if ema_decay is None else ema_decay
    if decay not in config.train.ema_decays:
        raise UserError(
            f"the run keeps the averages of decay {tuple(config.train.ema_decays)}; found {decay}"
        )
    return decay


def restored_items(
    workdir: Path, template: dict[str, PyTree], step: int | None
) -> tuple[int, dict[str, PyTree]]:
    """Returns the step and items of a checkpoint of a generator or policy; None for the newest.

    Raises:
      UserError: there is no checkpoint, or none of this step.
    """
    directory, restored = layout.generator_checkpoints(workdir), None
    if directory.is_dir():
        with Checkpoints(directory, keep=1, read_only=True) as checkpoints:
            if step is None:
                restored = checkpoints.restore_latest(template)
            else:
                restored = step, checkpoints.restore_step(step, template)
    if restored is None:
        raise UserError(f"{directory} holds no checkpoint yet: train longer, or wait for a save")
    return restored


@settled_jax()
def load_averages(workdir: str | Path, *, step: int | None = None) -> list[Generator]:
    """Reads the averages of a checkpoint: first those of train.ema_decays, the lowest decay first.

    With a snapshot of the same step, averages of some widths follow, the narrowest first. All share
    one sampler, which is compiled once.

    Args:
      workdir, step: as `load_run`.

    Raises:
      UserError: as `load_run`.
    """
    run = _opened(workdir)
    at, averages = _of_checkpoint(run, step)
    decays = sorted(run.config.train.ema_decays)
    first = _generator(run, averages[ema_name(decays[0])], step=at, ema_decay=decays[0])
    found = [first.with_average(averages[ema_name(decay)], ema_decay=decay) for decay in decays]
    if at in snapshot_steps(layout.snapshots(run.workdir)):
        snapshots = open_snapshots(run.workdir, step=at)
        for width in sorted(_WIDTHS & set(snapshots.expressible())):
            params, error = _of_width(run, snapshots, width)
            found.append(first.with_average(params, ema_sigma=width, fit_error=error))
    return found


def _opened(workdir: str | Path) -> _Run:
    """Reads what a workdir says about its generator."""
    workdir = Path(expanded(str(workdir)))
    config = load_config(workdir)
    if config.task != "generator":
        words = f"is a run of task {config.task!r}; expected 'generator'"
        raise UserError(f"{workdir} {words}{hint_of(config.task)}")
    directory = layout.generator_checkpoints(workdir)
    if not directory.is_dir():
        raise UserError(f"{workdir} has no generator yet: its training has not come to {directory}")
    source, class_names = data_identity.read_data_spec(workdir, config)
    return _Run(workdir, config, source, class_names, meshes.make_mesh())


def _of_checkpoint(run: _Run, step: int | None) -> tuple[int, dict[str, PyTree]]:
    """Returns the step and the averages of a checkpoint, the newest if `step` is None."""
    at, items = restored_items(run.workdir, {"ema": _template(run).ema}, step)
    return at, items["ema"]


def _of_width(run: _Run, snapshots: Snapshots, width: float) -> tuple[PyTree, float]:
    """Returns the parameters of an average of this width on the devices, and the fit's error."""
    fit, template = snapshots.fit(width), _template(run).params
    found = snapshots.average(fit)
    shapes = {path: leaf.shape for path, leaf in flatten_dict(template, sep="/").items()}
    if {path: array.shape for path, array in found.items()} != shapes:
        raise UserError(
            f"the snapshots in {snapshots.folder} hold other parameters than the run's generator"
        )
    shardings = jax.tree.map(lambda leaf: leaf.sharding, template)
    return jax.device_put(unflatten_dict(found, sep="/"), shardings), fit.error


def _template(run: _Run) -> TrainState:
    """Returns the shapes and shardings of the run's state."""
    init = functools.partial(initial_states.init_generator, run.config, run.source)
    return initial_states.state_template(run.config, run.mesh, init)


def _generator(
    run: _Run, params: PyTree, *, step: int, ema_decay: float = 0.0, vae: str = ""
) -> Generator:
    """Returns the generator of these parameters, with the VAE of its config or of `vae`."""
    config, decoder = run.config, None
    model = build.make_generator(config, run.source)
    if vae and not config.data.latent:
        raise UserError(
            f"--vae is for generators of latents; {run.workdir} makes pixels: leave it out"
        )
    if config.data.latent and (vae or config.vae.path):
        found = load_vae(vae or config.vae.path)
        if found.model.latent_channels != run.source.image_shape[-1]:
            raise UserError(
                f"{vae or config.vae.path} decodes latents of {found.model.latent_channels} "
                f"channels; the generator makes {run.source.image_shape[-1]}"
            )
        variables = jax.device_put(found.variables, meshes.replicated(run.mesh))
        decoder, params = found.model, {"generator": params, "vae": variables}
    return Generator(
        step=step,
        ema_decay=ema_decay,
        params=params,
        class_names=run.class_names,
        mesh=run.mesh,
        sampler=sampling.make_sampler(model, run.mesh, vae=decoder),
        model=model,
        vae=decoder,
        makes_pixels=decoder is not None or not config.data.latent,
        alpha_range=(config.guidance.minimum, config.guidance.maximum),
        config=config,
        data_spec=run.source,
    )
