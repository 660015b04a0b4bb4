"""What is measured, and what it is measured with."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from drifting_jax.digests import digest_values, fingerprint_variables
from drifting_jax.distributed import transfer
from drifting_jax.errors import UserError
from drifting_jax.evaluation.features.extractors import Extractor
from drifting_jax.evaluation.features.image_set import ImageSet
from drifting_jax.evaluation.features.image_sets import GeneratedImages, balanced_labels
from drifting_jax.evaluation.metrics.catalogue import METRICS
from drifting_jax.evaluation.reference import Reference
from drifting_jax.steps.generator import Generator


@dataclasses.dataclass(frozen=True)
class Settings:
    """Which metrics are computed, and how.

    Attributes:
      metrics: keys of `METRICS`, of those that apply to images.
      k: neighbours that make a ball.
      max_excluded: share of the images that may be left out because they cannot be measured.
    """

    metrics: Sequence[str]
    k: int
    max_excluded: float

    @property
    def features(self) -> set[str]:
        """The kinds of features that the metrics need."""
        return {METRICS[name].features for name in self.metrics}


@dataclasses.dataclass(frozen=True)
class EvaluationSetup:
    """What sets of images are measured with.

    Attributes:
      out: folder that everything is written to.
      extractors: networks that make features.
      settings: which metrics, and how.
      reference: of the real images, or None.
      mesh: all devices.
      batch_size: images at once.
      keep_features: whether features stay on the disk when the metrics are computed.
      is_main_process: whether this process prints and writes.
      stopped: whether to stop.
    """

    out: Path
    extractors: Sequence[Extractor]
    settings: Settings
    reference: Reference | None
    mesh: Mesh
    batch_size: int
    keep_features: bool
    is_main_process: bool
    stopped: Callable[[], bool] = lambda: False

    @functools.cached_property
    def digest(self) -> str:
        """Digits for everything but the images that metrics depend on."""
        arrays = []
        if self.reference is not None:
            moments, features = self.reference.moments, self.reference.features
            arrays = [x for k in sorted(moments) for x in moments[k]]
            arrays += [features[k] for k in sorted(features)]
        weights = [extractor.digest for extractor in self.extractors]
        return digest_values(weights, self.settings.k, *arrays)


@dataclasses.dataclass(frozen=True)
class SampleSet:
    """A set of images that is measured.

    Attributes:
      images: the set.
      alpha: guidance scale; None for images that were given.
      seed: of the noise; None for images that were given.
      facts: further fields of its lines in figures.jsonl: "step", "ema_decay" (or
        "ema_sigma" and "fit_error"), "weights", and "protocol" if it has a name.
    """

    images: ImageSet
    alpha: float | None = None
    seed: int | None = None
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def generated_sample_sets(
    generator: Generator,
    *,
    count: int,
    cfg_scales: Sequence[float] = (),
    seeds: Sequence[int] = (),
) -> list[SampleSet]:
    """Sets of `count` samples, equally many of each class, one for each α and seed.

    Without scales or seeds they are the config's, or 1 and 0 for weights without a run.

    Raises:
      UserError: the generator makes latents and nothing decodes them.
    """
    generator.check_makes_pixels()
    config = generator.config
    cfg_scales = cfg_scales or (config.eval.cfg_scales if config is not None else (1.0,))
    seeds = seeds or (config.seed if config is not None else 0,)
    labels, indices = balanced_labels(count, len(generator.class_names))
    identity = fingerprint_variables(transfer.fetch(generator.params))
    facts = {"step": generator.step, **generator.average_record, "weights": identity}
    return [
        SampleSet(
            GeneratedImages(generator, labels, indices, seed, scale, identity), scale, seed, facts
        )
        for scale in cfg_scales
        for seed in seeds
    ]


def check_count(images: ImageSet) -> None:
    """Raises UserError if there are too few images for any metric."""
    if len(images) < 2:
        raise UserError(f"metrics need two images or more; found {images.words}")
