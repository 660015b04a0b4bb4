"""Figures of a trained run of small images: digits, MNIST, CIFAR-10.

Samples the run at every α and seed and measures every set against the test split, on pixels and in
the features of a classifier that saw the training split alone. The same figure of real images
stands beside each. Prints a table for each; writes <workdir>/evaluation.json and report.html.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from drifting_jax.config import streams
from drifting_jax.evaluation.metrics.catalogue import SMALL_FIGURES
from drifting_jax.evaluation.metrics.neighbors import nearest_indices
from drifting_jax.evaluation.metrics.small_images import (
    Figure,
    SmallImageReference,
    evaluate_samples,
    figures_as_scalars,
    figures_table,
    make_judge,
)
from drifting_jax.evaluation.report import page as pages
from drifting_jax.files import write_json
from drifting_jax.steps.generator import Run
from drifting_jax.steps.sampling import class_major
from drifting_jax.workdir.image_files import image_grid, save_png
from drifting_jax.workdir.sample_files import write_samples

_FIGURES, _PAGE = "evaluation.json", "report.html"
_NEIGHBORS, _GRID_COLUMNS = 5, 12
_CURVE = ("accuracy", "fd_classifier")


def evaluate_run(
    run: Run,
    *,
    workdir: Path,
    seeds: Sequence[int],
    report: Callable[[str], None],
    cfg_scales: Sequence[float] = (),
    stopped: Callable[[], bool] = lambda: False,
) -> list[dict[str, Any]] | None:
    """Measures a run at every α and seed, keeps the samples of the first, writes figures and page.

    All processes sample; the first one writes. Figures of other seeds, scales or averages than the
    config's stand in files of their own, and their samples are not kept.

    Args:
      run: see `load_run`.
      workdir: gets evaluation.json, report.html, samples/final.npz and samples/final.png.
      seeds: of the noise.
      report: is given each table as it is ready.
      cfg_scales: every α; none for the config's.
      stopped: asked before each α whether to stop.

    Returns:
      Records {"figure", "alpha", "seed", "value", "floor"}, or None where it was stopped.
    """
    scales = tuple(cfg_scales) or run.config.eval.cfg_scales
    judge = make_judge(
        run.config.data,
        num_classes=run.described.num_classes,
        key=streams.stream_key(run.config, "classifier"),
    )
    labels, indices = class_major(
        range(run.described.num_classes), run.config.eval.samples_per_class
    )
    records, by_seed, writes = [], {}, jax.process_index() == 0
    for seed in seeds:
        found: dict[float, dict[str, Figure]] = {}
        by_seed[seed], suffix = found, _suffix(run, [seed], scales)
        for scale in scales:
            if stopped():
                return None
            images = run.sample(labels, indices, seed=seed, cfg_scale=scale)
            if writes and not found and not suffix:
                _keep_samples(workdir / "samples", images, labels)
            found[scale] = evaluate_samples(
                images,
                labels,
                train=judge.train,
                test=judge.test,
                classifier=judge.classifier,
                k=run.config.eval.k,
            )
            words = f"alpha {scale:g}" + f", seed {seed}" * (len(seeds) > 1)
            report(f"{words}: {figures_table(found[scale], num_samples=len(images))}")
            records += _records(found[scale], scale, seed)
    page = page_path(run, workdir, seeds, scales)
    _write_page(page, run, judge, records, writes=writes)
    if writes:  # evaluation.json marks a run as complete: last
        for seed, found in by_seed.items():
            path = figures_path(run, workdir, seed, scales)
            _write_figures(path, run, seed, len(labels), found)
    return records


def figures_path(run: Run, workdir: Path, seed: int, cfg_scales: Sequence[float] = ()) -> Path:
    """Where `evaluate_run` writes the figures of a seed."""
    scales = tuple(cfg_scales) or run.config.eval.cfg_scales
    return workdir / _named(_FIGURES, _suffix(run, [seed], scales))


def page_path(run: Run, workdir: Path, seeds: Sequence[int], cfg_scales: Sequence[float]) -> Path:
    """Where `evaluate_run` writes its page."""
    return workdir / _named(_PAGE, _suffix(run, seeds, cfg_scales))


def _records(figures: dict[str, Figure], alpha: float, seed: int) -> list[dict[str, Any]]:
    return [
        {"figure": name, "alpha": alpha, "seed": seed, "value": x.value, "floor": x.floor}
        for name, x in figures.items()
    ]


def _write_page(
    path: Path, run: Run, judge: SmallImageReference, records: list[dict[str, Any]], *, writes: bool
) -> None:
    """The page: figures, the curve over α, uncurated samples, and their nearest training images."""
    scales = list(dict.fromkeys(record["alpha"] for record in records))
    seeds = list(dict.fromkeys(record["seed"] for record in records))
    labels, indices = class_major(range(run.described.num_classes), _GRID_COLUMNS)
    names = ", ".join(run.class_names)
    pictures, first = [], None
    for scale in scales:
        images = run.sample(labels, indices, seed=seeds[0], cfg_scale=scale)
        first = images if first is None else first
        caption = f"The first {_GRID_COLUMNS} of each class, none chosen; a class a row: {names}."
        grid = image_grid(images, _GRID_COLUMNS, least=400)
        pictures.append(pages.Picture(f"alpha {scale:g}", caption, grid))
    if not writes:
        return
    page = pages.Report(
        title=str(path.parent),
        protocol=_protocol(run, seeds),
        records=records,
        info=SMALL_FIGURES,
        pictures=pictures,
        neighbors=_neighbors(judge, first[::_GRID_COLUMNS]),
        notes=[],
    )
    pages.write_report(path, page, curve=_CURVE if len(scales) > 1 else None)


def _protocol(run: Run, seeds: Sequence[int]) -> dict[str, str]:
    count, classes = run.config.eval.samples_per_class, run.described.num_classes
    return {
        "samples": f"{count * classes} for each alpha and seed, one network evaluation each",
        "label law": f"balanced: {count} of each of {classes} classes",
        "seeds": ", ".join(map(str, seeds)),
        "generator": f"step {run.step}, average of decay {run.ema_decay:g}",
        "compared with": "the test split, which nothing was trained on",
        "classifier": "a small convolutional network, trained on the training split",
        "manifolds": f"balls to the {run.config.eval.k}-th neighbour, on pixels",
        "real": "the same figure of training images",
    }


def _neighbors(judge: SmallImageReference, samples: np.ndarray) -> pages.Neighbors:
    features, training = (
        judge.classifier.predict(images).features for images in (samples, judge.train[0])
    )
    found = nearest_indices(features, training, count=_NEIGHBORS)
    return pages.Neighbors(
        samples=samples,
        nearest=judge.train[0][found.indices],
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


def _write_figures(
    path: Path, run: Run, seed: int, num_samples: int, found: dict[float, dict[str, Figure]]
) -> None:
    record = {
        "step": run.step,
        "seed": seed,
        "ema_decay": run.ema_decay,
        "num_samples": num_samples,
        "alpha": {f"{scale:g}": figures_as_scalars(figures) for scale, figures in found.items()},
    }
    write_json(path, record)


def _suffix(run: Run, seeds: Sequence[int], cfg_scales: Sequence[float]) -> str:
    """What names the files of figures that are not the run's own; empty for those."""
    config = run.config
    own_seed, own_scales = [config.seed], tuple(config.eval.cfg_scales)
    found = ""
    if run.step != config.train.num_steps:
        found += f"_step_{run.step}"
    if list(seeds) != own_seed or run.ema_decay != config.eval.ema_decay:
        found += f"_seed_{'_'.join(map(str, seeds))}_ema_{run.ema_decay:g}"
    if tuple(cfg_scales) != own_scales:
        found += f"_alpha_{'_'.join(f'{scale:g}' for scale in cfg_scales)}"
    return found


def _named(file: str, suffix: str) -> str:
    stem, dot, ending = file.partition(".")
    return f"{stem}{suffix}{dot}{ending}"
