"""A trained run, read back from its workdir for sampling and evaluation."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from drifting_jax import build, distributed, feeding, sampling, train
from drifting_jax.checkpoint import Checkpoints
from drifting_jax.config import ConfigDict, load_config
from drifting_jax.data import imagenet
from drifting_jax.data.sources import Described
from drifting_jax.errors import UserError
from drifting_jax.state import ema_name
from drifting_jax.weights.networks import load_network


@dataclasses.dataclass(frozen=True)
class Generator:
    """A generator ready to sample.

    Attributes:
      step: training steps behind it.
      ema_decay: of the moving average that its parameters are.
      params: as `sampler` takes them.
      class_names: in the order of the labels.
      mesh: all devices at hand.
      sampler: `sampling.make_sampler`'s.
      makes_pixels: whether there is a VAE for a generator of latents.
    """

    step: int
    ema_decay: float
    params: Any
    class_names: Sequence[str]
    mesh: Mesh
    sampler: sampling.Sampler
    makes_pixels: bool

    def sample(
        self,
        labels: np.ndarray,
        indices: np.ndarray,
        *,
        seed: int,
        cfg_scale: float,
        batch_size: int = 256,
    ) -> np.ndarray:
        """Images [n, h, w, c] uint8; image i depends on seed, labels[i], indices[i], cfg_scale.

        Raises:
          UserError: the generator makes latents and nothing decodes them, or what it makes is not
            finite.
        """
        batches = self.batches(
            labels, indices, seed=seed, cfg_scale=cfg_scale, batch_size=batch_size
        )
        found = sampling.concatenated(batches, len(labels))
        if not found.finite.all():
            raise UserError(
                f"{np.sum(~found.finite)} of {len(labels)} samples are not finite: the weights are "
                "damaged, or their training diverged"
            )
        return found.images

    def batches(
        self,
        labels: np.ndarray,
        indices: np.ndarray,
        *,
        seed: int,
        cfg_scale: float,
        batch_size: int,
    ) -> Iterator[sampling.Samples]:
        """The same on the devices, as `sampling.sample_in_batches`, finite or not.

        Raises:
          UserError: the generator makes latents and nothing decodes them.
        """
        if not self.makes_pixels:
            raise UserError(
                "the generator makes latents: say what decodes them to pixels with --vae, or "
                "config.vae.path"
            )
        return sampling.sample_in_batches(
            self.sampler,
            self.params,
            jax.random.fold_in(jax.random.key(seed), build.STREAMS["samples"]),
            labels,
            indices,
            cfg_scale=cfg_scale,
            batch_size=batch_size,
            mesh=self.mesh,
        )


@dataclasses.dataclass(frozen=True)
class Run(Generator):
    """The generator of one checkpoint of a run, with the run's config and its data's shape."""

    config: ConfigDict
    described: Described


def load_generator(name: str, *, vae: str = "") -> Generator:
    """A generator without a run: an artifact of the paper's release, or a folder of ours.

    Args:
      name: what `load_network` takes.
      vae: the same, of the VAE that turns latents to pixels, for a generator of latents.

    Raises:
      UserError: there is no generator, or it makes latents and there is no VAE.
    """
    network = load_network(name, kind="generator")
    model, params, decoder = network.model, network.variables["params"], None
    if vae:
        found = load_network(vae, kind="vae")
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
    mesh = distributed.make_mesh()
    return Generator(
        step=network.step,
        ema_decay=network.ema_decay,
        params=jax.device_put(params, distributed.replicated(mesh)),
        class_names=_names_of(model.num_classes),
        mesh=mesh,
        sampler=sampling.make_sampler(model, mesh, vae=decoder),
        makes_pixels=True,
    )


def _names_of(num_classes: int) -> list[str]:
    """Of ImageNet's classes, if so many; else numbers."""
    if num_classes == imagenet.NUM_CLASSES:
        return list(imagenet.class_table())
    return [str(label) for label in range(num_classes)]


def load_run(
    workdir: Path, *, ema_decay: float | None = None, vae: str = "", step: int | None = None
) -> Run:
    """Reads a checkpoint of a generator's workdir; its data need not be there.

    Args:
      workdir: of a run of task "generator".
      ema_decay: which moving average; None for the config's eval.ema_decay.
      vae: what decodes latents, of `load_network`; empty for the config's vae.path, and where that
        is empty too the samples are latents, which `Generator.sample` refuses.
      step: of the checkpoint; None for the newest.

    Raises:
      UserError: there is no such run, no checkpoint yet or of this step, or no such average.
    """
    config = load_config(workdir)
    if config.task != "generator":
        raise UserError(f"{workdir} is a run of task {config.task!r}; expected 'generator'")
    decay = config.eval.ema_decay if ema_decay is None else ema_decay
    if decay not in config.train.ema_decays:
        raise UserError(
            f"the run keeps the averages of decay {tuple(config.train.ema_decays)}; found {decay}"
        )
    directory = train.checkpoint_directory(workdir)
    if not directory.is_dir():
        raise UserError(f"{workdir} has no generator yet: its training has not come to {directory}")
    source, class_names = feeding.read_described(workdir, config)
    mesh = distributed.make_mesh()
    init, place = train.state_maker(config, source, mesh)
    wanted = {"ema": distributed.template(init, shardings=place).ema}
    with Checkpoints(directory, keep=1, read_only=True) as checkpoints:
        if step is None:
            restored = checkpoints.restore_latest(wanted)
        else:
            restored = step, checkpoints.restore_step(step, wanted)
    if restored is None:
        raise UserError(f"{directory} holds no checkpoint yet: train longer, or wait for a save")
    step, trees = restored
    params, decoder = trees["ema"][ema_name(decay)], None
    if vae and not config.data.latent:
        raise UserError(f"--vae is for generators of latents; {workdir} makes pixels: leave it out")
    if config.data.latent and (vae or config.vae.path):
        found = load_network(vae or config.vae.path, kind="vae")
        if found.model.latent_channels != source.image_shape[-1]:
            raise UserError(
                f"{vae or config.vae.path} decodes latents of {found.model.latent_channels} "
                f"channels; the generator makes {source.image_shape[-1]}"
            )
        variables = jax.device_put(found.variables, distributed.replicated(mesh))
        decoder, params = found.model, {"generator": params, "vae": variables}
    return Run(
        config=config,
        step=step,
        ema_decay=decay,
        params=params,
        described=source,
        class_names=class_names,
        mesh=mesh,
        sampler=sampling.make_sampler(build.make_generator(config, source), mesh, vae=decoder),
        makes_pixels=decoder is not None or not config.data.latent,
    )
