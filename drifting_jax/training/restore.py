"""Reads trained generators back: from the workdir of a run, or from weights without a run."""

import functools
from pathlib import Path

import jax

from drifting_jax.config import load_config
from drifting_jax.data import class_names
from drifting_jax.distributed import meshes
from drifting_jax.errors import UserError
from drifting_jax.files import expanded
from drifting_jax.steps import sampling
from drifting_jax.steps.generator import Generator
from drifting_jax.steps.state import ema_name
from drifting_jax.surroundings import settled_jax
from drifting_jax.training import build, data_identity, initial_states
from drifting_jax.weights.networks import load_network, load_vae
from drifting_jax.workdir.checkpoint import Checkpoints
from drifting_jax.workdir.layout import generator_checkpoints


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


@settled_jax()
def load_run(
    workdir: str | Path, *, ema_decay: float | None = None, vae: str = "", step: int | None = None
) -> Generator:
    """Reads a checkpoint of a generator's workdir; its data need not be there.

    Args:
      workdir: of a run of task "generator".
      ema_decay: which moving average; None for the config's eval.ema_decay.
      vae: what `load_network` takes for the VAE that decodes latents; empty for the config's
        vae.path. Without any, the generator makes latents, which `Generator.sample` refuses.
      step: of the checkpoint; None for the newest.

    Raises:
      UserError: there is no such run, no checkpoint yet or of this step, or no such average.
    """
    workdir = Path(expanded(str(workdir)))
    config = load_config(workdir)
    if config.task != "generator":
        raise UserError(f"{workdir} is a run of task {config.task!r}; expected 'generator'")
    decay = config.eval.ema_decay if ema_decay is None else ema_decay
    if decay not in config.train.ema_decays:
        raise UserError(
            f"the run keeps the averages of decay {tuple(config.train.ema_decays)}; found {decay}"
        )
    directory = generator_checkpoints(workdir)
    if not directory.is_dir():
        raise UserError(f"{workdir} has no generator yet: its training has not come to {directory}")
    source, class_names = data_identity.read_data_spec(workdir, config)
    mesh = meshes.make_mesh()
    init = functools.partial(initial_states.init_generator, config, source)
    wanted = {"ema": initial_states.state_template(config, mesh, init).ema}
    with Checkpoints(directory, keep=1, read_only=True) as checkpoints:
        if step is None:
            restored = checkpoints.restore_latest(wanted)
        else:
            restored = step, checkpoints.restore_step(step, wanted)
    if restored is None:
        raise UserError(f"{directory} holds no checkpoint yet: train longer, or wait for a save")
    step, trees = restored
    params, decoder = trees["ema"][ema_name(decay)], None
    model = build.make_generator(config, source)
    if vae and not config.data.latent:
        raise UserError(f"--vae is for generators of latents; {workdir} makes pixels: leave it out")
    if config.data.latent and (vae or config.vae.path):
        found = load_vae(vae or config.vae.path)
        if found.model.latent_channels != source.image_shape[-1]:
            raise UserError(
                f"{vae or config.vae.path} decodes latents of {found.model.latent_channels} "
                f"channels; the generator makes {source.image_shape[-1]}"
            )
        variables = jax.device_put(found.variables, meshes.replicated(mesh))
        decoder, params = found.model, {"generator": params, "vae": variables}
    return Generator(
        step=step,
        ema_decay=decay,
        params=params,
        class_names=class_names,
        mesh=mesh,
        sampler=sampling.make_sampler(model, mesh, vae=decoder),
        model=model,
        vae=decoder,
        makes_pixels=decoder is not None or not config.data.latent,
        alpha_range=(config.guidance.minimum, config.guidance.maximum),
        config=config,
        data_spec=source,
    )
