"""Metrics of a trained run of small images: digits, MNIST, CIFAR.

Samples the run at every α and seed and compares each set with the test split, on pixels and in the
features of a classifier that is trained on the training split alone. Each metric has a baseline of
real images. Prints a table for each set; writes <workdir>/evaluation.json and report.html.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from drifting_jax.config import ConfigDict, streams
from drifting_jax.evaluation.metrics.neighbors import nearest_indices
from drifting_jax.evaluation.metrics.records import MetricRecord, as_scalars
from drifting_jax.evaluation.metrics.small_images import (
    SmallImageReference,
    make_small_reference,
    measure_small_images,
)
from drifting_jax.evaluation.report.page import Neighbors, Picture, Report, write_page
from drifting_jax.evaluation.report.tables import baseline_table
from drifting_jax.files import write_json
from drifting_jax.steps.generator import Generator
from drifting_jax.steps.sampling import class_major
from drifting_jax.workdir.image_files import image_grid, save_png
from drifting_jax.workdir.sample_files import write_samples

_METRICS, _PAGE = "evaluation.json", "report.html"
_NEIGHBORS, _GRID_COLUMNS = 5, 12
_CURVE = ("accuracy", "fd_classifier")


def evaluate_run(
    run: Generator,
    *,
    workdir: Path,
    report: Callable[[str], None],
    seeds: Sequence[int] = (),
    cfg_scales: Sequence[float] = (),
    stopped: Callable[[], bool] = lambda: False,
) -> list[MetricRecord] | None:
    """Measures a run at every α and seed; writes the metrics, the page and the first samples.

    All processes sample; the main one writes. Metrics of other seeds, scales, steps or averages
    than the config's are written to files of their own, and their samples are not kept.

    Args:
      run: a generator with its config, see `load_run`.
      workdir: gets evaluation.json, report.html, samples/final.npz and samples/final.png.
      report: is called with each table as soon as it is ready.
      seeds: of the noise; empty for the config's.
      cfg_scales: every α; empty for the config's.
      stopped: asked before each α whether to stop.

    Returns:
      The records of all sets; None if it was stopped.
    """
    config, num_classes = _config(run), len(run.class_names)
    seeds, scales = seeds or [config.seed], cfg_scales or config.eval.cfg_scales
    reference = make_small_reference(
        config.data, num_classes=num_classes, key=streams.stream_key(config, "classifier")
    )
    labels, indices = class_major(range(num_classes), config.eval.samples_per_class)
    records: list[MetricRecord] = []
    writes = jax.process_index() == 0
    for seed in seeds:
        for scale in scales:
            if stopped():
                return None
            images = run.sample(labels, indices, seed=seed, cfg_scale=scale)
            if writes and scale == scales[0] and not _suffix(run, [seed], scales):
                _keep_samples(workdir / "samples", images, labels)
            found = measure_small_images(
                images,
                labels,
                train=reference.train,
                test=reference.test,
                classifier=reference.classifier,
                k=config.eval.k,
                labelled=reference.labelled,
            )
            words = f"alpha {scale:g}" + f", seed {seed}" * (len(seeds) > 1)
            report(f"{words}: {baseline_table(found, num_samples=len(images))}")
            records += [dataclasses.replace(each, alpha=scale, seed=seed) for each in found]
    paths, page = output_paths(run, workdir, seeds=seeds, cfg_scales=scales)
    _write_page(page, run, reference, records, seeds=seeds, scales=scales, writes=writes)
    if writes:  # last, as evaluation.json marks a run as complete
        for seed, path in zip(seeds, paths, strict=True):
            own = [record for record in records if record.seed == seed]
            _write_metrics(path, run, seed, len(labels), own)
    return records


def output_paths(
    run: Generator, workdir: Path, *, seeds: Sequence[int] = (), cfg_scales: Sequence[float] = ()
) -> tuple[list[Path], Path]:
    """The files that `evaluate_run` writes: the metrics of each seed, and the page."""
    config = _config(run)
    seeds, scales = seeds or [config.seed], cfg_scales or config.eval.cfg_scales
    metrics = [workdir / _named(_METRICS, _suffix(run, [seed], scales)) for seed in seeds]
    return metrics, workdir / _named(_PAGE, _suffix(run, seeds, scales))


def _config(run: Generator) -> ConfigDict:
    if run.config is None:
        raise ValueError("expected a generator that was read from a run; found one without config")
    return run.config


def _write_page(
    path: Path,
    run: Generator,
    reference: SmallImageReference,
    records: Sequence[MetricRecord],
    *,
    seeds: Sequence[int],
    scales: Sequence[float],
    writes: bool,
) -> None:
    """The page: metrics, the curve over α, uncurated samples, and their nearest training images."""
    labels, indices = class_major(range(len(run.class_names)), _GRID_COLUMNS)
    names = ", ".join(run.class_names)
    caption = f"The first {_GRID_COLUMNS} of each class, none chosen; a class a row: {names}."
    pictures, grids = [], []
    for scale in scales:
        grids.append(run.sample(labels, indices, seed=seeds[0], cfg_scale=scale))
        grid = image_grid(grids[-1], _GRID_COLUMNS, least=400)
        pictures.append(Picture(f"alpha {scale:g}", caption, grid))
    if not writes:
        return
    page = Report(
        title=str(path.parent),
        protocol=protocol_of_run(run, seeds),
        records=records,
        pictures=pictures,
        neighbors=_neighbors(reference, grids[0][::_GRID_COLUMNS]),
        notes=[],
    )
    has_curve = len(scales) > 1 and reference.labelled
    write_page(path, page, curve=_CURVE if has_curve else None)


def protocol_of_run(run: Generator, seeds: Sequence[int]) -> dict[str, str]:
    """How `evaluate_run` makes the metrics of these seeds: words by name."""
    config, classes = _config(run), len(run.class_names)
    count = config.eval.samples_per_class
    return {
        "samples": f"{count * classes} for each alpha and seed, one network evaluation each",
        "labels": f"balanced: {count} of each of {classes} classes" if classes > 1 else "none",
        "seeds": ", ".join(map(str, seeds)),
        "generator": f"step {run.step}, average of {run.average}",
        "compared with": "the test split, which nothing was trained on",
        "classifier": "a small convolutional network, trained on the training split",
        "manifolds": f"balls to the {config.eval.k}-th neighbour, on pixels",
        "real": "the same metric of training images",
    }


def _neighbors(reference: SmallImageReference, samples: np.ndarray) -> Neighbors:
    features, training = (
        reference.classifier.predict(images).features for images in (samples, reference.train[0])
    )
    found = nearest_indices(features, training, count=_NEIGHBORS)
    return Neighbors(
        samples=samples,
        nearest=reference.train[0][found.indices],
        distances=found.distances,
        words="the nearest of all training images, by Euclidean distance of the classifier's "
        "features; the first sample of each class.",
    )


def _keep_samples(folder: Path, images: np.ndarray, labels: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    per_class = len(labels) // len(np.unique(labels))
    write_samples(folder / "final.npz", images, labels, per_class=per_class)
    first = np.concatenate([images[labels == label][:16] for label in np.unique(labels)])
    save_png(folder / "final.png", image_grid(first, min(per_class, 16), least=640))


def _write_metrics(
    path: Path, run: Generator, seed: int, num_samples: int, records: Sequence[MetricRecord]
) -> None:
    by_scale: dict[str, list[MetricRecord]] = {}
    for record in records:
        by_scale.setdefault(f"{record.alpha:g}", []).append(record)
    found = {
        "step": run.step,
        "seed": seed,
        **run.average_record,
        "num_samples": num_samples,
        "alpha": {scale: as_scalars(own) for scale, own in by_scale.items()},
    }
    write_json(path, found)


def _suffix(run: Generator, seeds: Sequence[int], cfg_scales: Sequence[float]) -> str:
    """What names the files of metrics that are not the run's own; empty for those."""
    config = _config(run)
    own_seed, own_scales = [config.seed], tuple(config.eval.cfg_scales)
    found = ""
    if run.step != config.train.num_steps:
        found += f"_step_{run.step}"
    if list(seeds) != own_seed or run.average_record != {"ema_decay": config.eval.ema_decay}:
        average = run.average.removeprefix("decay ").replace(" ", "_")
        found += f"_seed_{'_'.join(map(str, seeds))}_ema_{average}"
    if tuple(cfg_scales) != own_scales:
        found += f"_alpha_{'_'.join(f'{scale:g}' for scale in cfg_scales)}"
    return found


def _named(file: str, suffix: str) -> str:
    stem, dot, ending = file.partition(".")
    return f"{stem}{suffix}{dot}{ending}"
