"""Makes the pictures of a generator for several visitors at once, and times each."""

import dataclasses
import threading
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from drifting_jax.config.streams import samples_key
from drifting_jax.demonstration.choices import labels_of
from drifting_jax.distributed import transfer
from drifting_jax.steps.generator import Generator, finite_images
from drifting_jax.steps.interpolation import interpolated
from drifting_jax.steps.sampling import Samples


@dataclasses.dataclass(frozen=True)
class Wish:
    """A picture that a visitor asks for.

    Attributes:
      label: of the class, or `ALL_CLASSES`.
      alpha: guidance scale.
      average: decay of the moving average of the weights.
      rows: samples of one seed; each is a row of a picture between two seeds.
      seeds: one seed, or two for what lies between them.
      columns: samples between two seeds, the ends included; 1 for one seed.
    """

    label: int
    alpha: float
    average: float
    rows: int
    seeds: tuple[int, ...]
    columns: int = 1

    @property
    def count(self) -> int:
        """Samples in the picture."""
        return self.rows * self.columns


@dataclasses.dataclass(frozen=True)
class Made:
    """images: [n, h, w, c] uint8; labels: [n] int32; seconds, compile_seconds: `timing_line`."""

    images: np.ndarray
    labels: np.ndarray
    seconds: float
    compile_seconds: float | None


class Studio:
    """One generator with the averages of its weights; calls wait for each other."""

    def __init__(
        self,
        generator: Generator,
        *,
        averages: Sequence[float] = (),
        load_average: Callable[[float], Generator] | None = None,
    ) -> None:
        """Takes a generator.

        Args:
          generator: of pixels, or with what decodes its latents.
          averages: decays that can be chosen; empty for that of the generator alone.
          load_average: reads the generator with another of them, when it is first asked for.

        Raises:
          UserError: the generator makes latents and nothing decodes them.
        """
        generator.check_makes_pixels()
        self.generator = generator
        self.averages = list(averages) or [generator.ema_decay]
        self._load_average = load_average
        self._params = {generator.ema_decay: generator.params}
        self._compiled: set[tuple[bool, int]] = set()
        self._lock = threading.Lock()

    def compiles(self, wish: Wish) -> bool:
        """Whether the picture needs a program that is not compiled yet."""
        return _program(wish) not in self._compiled

    def make(self, wish: Wish) -> Made:
        """Makes a picture. The time is that of a compiled program: the first call is repeated.

        Raises:
          UserError: a sample is not finite, or the average cannot be read.
        """
        labels, indices = labels_of(wish.label, wish.rows, len(self.generator.class_names))
        all_labels = np.repeat(np.asarray(labels, np.int32), wish.columns)
        all_indices = np.repeat(np.asarray(indices, np.int32), wish.columns)
        with self._lock:
            generator = self._at(wish.average)
            first = None
            if self.compiles(wish):
                _, first = _timed(generator, wish, all_labels, all_indices)
                self._compiled.add(_program(wish))
            samples, seconds = _timed(generator, wish, all_labels, all_indices)
        found = Samples(*(part[: wish.count] for part in transfer.fetch(samples)))
        return Made(finite_images(found), all_labels, seconds, first)

    def _at(self, average: float) -> Generator:
        """The generator with one of its averages; all of them share one sampler."""
        if average not in self._params:
            assert self._load_average is not None
            self._params[average] = self._load_average(average).params
        params = self._params[average]
        return dataclasses.replace(self.generator, params=params, ema_decay=average)


def _program(wish: Wish) -> tuple[bool, int]:
    """What a compiled program depends on."""
    return len(wish.seeds) > 1, wish.count


def _timed(
    generator: Generator, wish: Wish, labels: np.ndarray, indices: np.ndarray
) -> tuple[Samples, float]:
    """Samples on the devices, and the seconds of the program that made them."""
    if len(wish.seeds) == 1:
        batches = generator.batches(
            labels, indices, seed=wish.seeds[0], cfg_scale=wish.alpha, batch_size=wish.count
        )
        make = batches.__next__
    else:
        make = _between(generator, wish, labels, indices)
    started = time.perf_counter()
    samples = jax.block_until_ready(make())
    return samples, time.perf_counter() - started


def _between(
    generator: Generator, wish: Wish, labels: np.ndarray, indices: np.ndarray
) -> Callable[[], Samples]:
    """A function that makes the samples between two seeds."""
    keys = jnp.stack([samples_key(seed) for seed in wish.seeds])
    fractions = np.tile(np.linspace(0, 1, wish.columns, dtype=np.float32), wish.rows)
    return lambda: interpolated(
        generator.params,
        keys,
        labels,
        indices,
        fractions,
        np.float32(wish.alpha),
        model=generator.model,
        vae=generator.vae,
    )
