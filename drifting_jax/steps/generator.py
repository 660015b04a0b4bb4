"""A generator ready to sample, from a run or from weights alone."""

import dataclasses
import functools
import reprlib
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import numpy as np
from jax.sharding import Mesh

from drifting_jax.config import ConfigDict, streams
from drifting_jax.data.sources import DataSpec
from drifting_jax.errors import UserError
from drifting_jax.models.vae import VAE
from drifting_jax.steps import sampling
from drifting_jax.surroundings import settled_jax


@dataclasses.dataclass(frozen=True)
class Generator:
    """A generator ready to sample.

    Attributes:
      step: training steps of its parameters.
      ema_decay: of the moving average that its parameters are; 0 for one of a width.
      params: as `sampler` takes them.
      class_names: in the order of the labels.
      mesh: the devices that sample.
      sampler: made by `sampling.make_sampler`.
      model: the network.
      vae: decodes its latents; None without one.
      makes_pixels: false for a generator of latents without a VAE.
      alpha_range: smallest and largest guidance scale α of its training; None if unknown.
      config: of its run; None for weights without a run.
      data_spec: shape and classes of the run's data; None for weights without a run.
      ema_sigma: relative width of the power-function average that its parameters are; None for one
        of a decay.
      fit_error: relative error of the profile of that average.
    """

    step: int
    ema_decay: float
    params: Any
    class_names: Sequence[str]
    mesh: Mesh
    sampler: sampling.Sampler
    model: nn.Module
    vae: VAE | None
    makes_pixels: bool
    alpha_range: tuple[float, float] | None = None
    config: ConfigDict | None = None
    data_spec: DataSpec | None = None
    ema_sigma: float | None = None
    fit_error: float = 0.0

    @property
    def average(self) -> str:
        """Which average its parameters are, in words: "decay 0.999" or "width 0.07"."""
        if self.ema_sigma is None:
            return f"decay {self.ema_decay:g}"
        return f"width {self.ema_sigma:g}"

    @property
    def average_record(self) -> dict[str, float]:
        """The same for files: {"ema_decay": …}, or {"ema_sigma": …, "fit_error": …}."""
        if self.ema_sigma is None:
            return {"ema_decay": self.ema_decay}
        return {"ema_sigma": self.ema_sigma, "fit_error": self.fit_error}

    def with_average(
        self,
        params: Any,
        *,
        ema_decay: float = 0.0,
        ema_sigma: float | None = None,
        fit_error: float = 0.0,
    ) -> "Generator":
        """Returns the generator with another average of its network, and the same sampler."""
        if self.vae is not None:
            params = {**self.params, "generator": params}
        return dataclasses.replace(
            self, params=params, ema_decay=ema_decay, ema_sigma=ema_sigma, fit_error=fit_error
        )

    @settled_jax()
    def sample(
        self,
        labels: np.ndarray | Sequence[int],
        indices: np.ndarray | Sequence[int],
        *,
        seed: int,
        cfg_scale: float,
        batch_size: int = 256,
        position: float | None = None,
    ) -> np.ndarray:
        """Images [n, h, w, c] uint8; image i depends on seed, labels[i], indices[i], cfg_scale.

        With a position in (0, 1) they lie on the way to the samples indices + 1, see
        `sampling.between`.

        Raises:
          UserError: the labels are no classes, or not as many as the indices; the generator makes
            latents and nothing decodes them; or a sample is not finite.
        """
        labels, indices = self._checked(labels, indices)
        batches = self.batches(
            labels,
            indices,
            seed=seed,
            cfg_scale=cfg_scale,
            batch_size=batch_size,
            position=position,
        )
        return finite_images(sampling.concatenated(batches, len(labels)))

    def _checked(
        self, labels: np.ndarray | Sequence[int], indices: np.ndarray | Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Labels and indices [n] as arrays of integers. Raises UserError if they are not."""
        found, numbers = np.asarray(labels), np.asarray(indices)
        last = len(self.class_names) - 1
        if not (
            found.ndim == 1
            and found.shape == numbers.shape
            and found.dtype.kind in "iu"
            and numbers.dtype.kind in "iu"
            and not np.any((found < 0) | (found > last))
        ):
            raise UserError(
                f"labels must be a list of integers from 0 to {last}, and indices one of as many "
                f"integers; found labels {reprlib.repr(labels)} and indices "
                f"{reprlib.repr(indices)}. The label of a class is class_names.index(NAME)"
            )
        return found, numbers

    def interpolate(
        self,
        labels: np.ndarray | Sequence[int],
        indices: np.ndarray | Sequence[int],
        *,
        count: int,
        seed: int,
        cfg_scale: float,
        batch_size: int = 256,
    ) -> np.ndarray:
        """Ways [n, count, h, w, c] uint8 from samples to the next ones of their classes.

        The first image of way i is the sample of labels[i] and indices[i], the last one that of
        indices[i] + 1, both exactly as `sample` makes them. Those between lie at equal distances on
        the way of `sampling.between`, with the same α.

        Raises:
          ValueError: count is below 2.
          UserError: as `sample`.
        """
        if count < 2:
            raise ValueError(f"a way has at least 2 images; found count {count}")
        labels, indices = self._checked(labels, indices)

        def sample(indices: np.ndarray, position: float | None = None) -> np.ndarray:
            return self.sample(
                labels,
                indices,
                seed=seed,
                cfg_scale=cfg_scale,
                batch_size=batch_size,
                position=position,
            )

        inner = [sample(indices, k / (count - 1)) for k in range(1, count - 1)]
        return np.stack([sample(indices), *inner, sample(indices + 1)], axis=1)

    def check_makes_pixels(self) -> None:
        """Raises UserError if the generator makes latents and nothing decodes them."""
        if not self.makes_pixels:
            raise UserError(
                "the generator makes latents: say what decodes them to pixels with --vae, or "
                "config.vae.path"
            )

    def batches(
        self,
        labels: np.ndarray,
        indices: np.ndarray,
        *,
        seed: int,
        cfg_scale: float,
        batch_size: int,
        position: float | None = None,
    ) -> Iterator[sampling.Samples]:
        """The same samples on the devices, finite or not: see `sampling.sample_in_batches`.

        Raises:
          UserError: as `check_makes_pixels`.
        """
        self.check_makes_pixels()
        sampler = self.sampler
        if position is not None:
            sampler = functools.partial(sampler, position=np.float32(position))
        return sampling.sample_in_batches(
            sampler,
            self.params,
            streams.samples_key(seed),
            labels,
            indices,
            cfg_scale=cfg_scale,
            batch_size=batch_size,
            mesh=self.mesh,
        )


def finite_images(found: sampling.Samples) -> np.ndarray:
    """Returns the images [n, h, w, c] uint8 of samples on the host.

    Raises:
      UserError: a sample is not finite.
    """
    if not found.finite.all():
        raise UserError(
            f"{np.sum(~found.finite)} of {len(found.finite)} samples are not finite: the weights "
            "are damaged, or their training diverged"
        )
    return found.images
