"""Metrics during training, every `eval.every` steps, at the first α of the config."""

import functools
import shutil
from collections.abc import Callable
from pathlib import Path

from absl import logging

from drifting_jax.config import ConfigDict, streams
from drifting_jax.data.sources import SMALL_SOURCES
from drifting_jax.distributed import processes
from drifting_jax.errors import UserError
from drifting_jax.evaluation import measurement
from drifting_jax.evaluation.features.extractors import load_extractor
from drifting_jax.evaluation.features.image_sets import GeneratedImages, balanced_labels
from drifting_jax.evaluation.metrics.small_images import (
    SmallImageReference,
    make_small_reference,
    measure_small_images,
)
from drifting_jax.evaluation.reference import check_weights, read_reference
from drifting_jax.evaluation.setup import EvaluationSetup, SampleSet, Settings
from drifting_jax.steps.generator import Generator
from drifting_jax.workdir.stopping import StopAgreement

STAGE = "evaluation"  # in metrics.jsonl
_FOLDER = "evaluation_in_training"  # of features, while they are made
_METRICS = ("fid", "inception_score")
_MAX_EXCLUDED = 0.001

Monitor = Callable[[Generator], dict[str, float]]


def make_monitor(config: ConfigDict, *, workdir: Path, stops: StopAgreement) -> Monitor | None:
    """Returns the function that measures a generator during training; None if `eval.every` is 0.

    Weights and statistics are read at once, before anything is trained.

    Returns:
      generator -> {metric: value}, empty in processes other than the main one.

    Raises:
      UserError: eval.reference, the weights of Inception or the VAE are missing or do not fit.
    """
    if not config.eval.every:
        return None
    if config.data.latent and not config.vae.path:
        raise UserError("config.eval.every needs config.vae.path, which decodes the latents")
    if config.data.source in SMALL_SOURCES:
        return _small_monitor(config)
    if not config.eval.reference:
        raise UserError(
            "config.eval.every measures FID against config.eval.reference, an .npz file: make one "
            "with `python -m drifting_jax.evaluate reference`, or set config.eval.every to 0"
        )
    return _image_monitor(config, workdir, stops)


def _small_monitor(config: ConfigDict) -> Monitor:
    @functools.cache
    def reference_of(num_classes: int) -> SmallImageReference:
        key = streams.stream_key(config, "classifier")
        return make_small_reference(config.data, num_classes=num_classes, key=key)

    def measure(generator: Generator) -> dict[str, float]:
        reference = reference_of(len(generator.class_names))
        count = config.eval.samples_per_class * len(generator.class_names)
        labels, indices = balanced_labels(count, len(generator.class_names))
        images = generator.sample(
            labels, indices, seed=config.seed, cfg_scale=config.eval.cfg_scales[0]
        )
        records = measure_small_images(
            images,
            labels,
            train=reference.train,
            test=reference.test,
            classifier=reference.classifier,
            k=config.eval.k,
            labelled=reference.labelled,
        )
        return {record.metric: record.value for record in records}

    return measure


def _image_monitor(config: ConfigDict, workdir: Path, stops: StopAgreement) -> Monitor:
    extractors = [
        load_extractor("inception", config.eval.inception, flag="--config.eval.inception")
    ]
    if extractors[0].warning and processes.is_main_process():
        logging.warning(extractors[0].warning)
    reference = read_reference(Path(config.eval.reference))
    check_weights(reference, extractors)
    if "inception" not in reference.moments:
        raise UserError(
            f"config.eval.reference={config.eval.reference} holds images alone: make statistics of "
            "them with `python -m drifting_jax.evaluate reference`"
        )
    out = workdir / _FOLDER

    def measure(generator: Generator) -> dict[str, float]:
        count = config.eval.num_samples
        labels, indices = balanced_labels(count, len(generator.class_names))
        images = GeneratedImages(
            generator,
            labels,
            indices,
            config.seed,
            config.eval.cfg_scales[0],
            f"step {generator.step} of {workdir}",
        )
        setup = EvaluationSetup(
            out=out,
            extractors=extractors,
            settings=Settings(_METRICS, config.eval.k, _MAX_EXCLUDED),
            reference=reference,
            mesh=generator.mesh,
            batch_size=64 * generator.mesh.size,
            keep_features=False,
            is_main_process=processes.is_main_process(),
            stopped=stops,
        )
        # Features of a pass that was killed may be rounded differently.
        if processes.is_main_process():
            shutil.rmtree(out, ignore_errors=True)
        try:
            found = measurement.measure(setup, SampleSet(images), record=False)
        except UserError as error:  # no reason to end the training
            logging.error("Step %d was not measured: %s", generator.step, error)
            return {}
        if found is None:
            logging.warning("step %d was not measured: asked to stop", generator.step)
            return {}
        for note in found.notes:
            logging.warning("step %d: %s", generator.step, note)
        return {record.metric: record.value for record in found.records}

    return measure
