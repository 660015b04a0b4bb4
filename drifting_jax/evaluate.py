"""Figures of a trained run: `python -m drifting_jax.evaluate --workdir=runs/digits`.

Samples the run at each α of the config's eval.cfg_scales and measures every set against the test
split, on pixels and in the features of a classifier that saw the training split alone. The same
figure of real images stands beside each. Prints a table an α and writes <workdir>/evaluation.json.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from absl import flags

from drifting_jax import build
from drifting_jax.command_line import run_program
from drifting_jax.data.sources import SMALL_SOURCES, as_arrays, make_source
from drifting_jax.errors import UserError
from drifting_jax.evaluation.classifier import train_classifier
from drifting_jax.evaluation.small import (
    Figure,
    evaluate_samples,
    figures_as_scalars,
    figures_table,
)
from drifting_jax.files import write_json
from drifting_jax.loading import Run, load_run
from drifting_jax.metrics import image_grid, save_png
from drifting_jax.sample import write_samples
from drifting_jax.sampling import class_major

_FIGURES = "evaluation.json"


def define_flags() -> None:
    """Registers the command line's flags."""
    flags.DEFINE_string("workdir", None, "Directory of the run.", required=True)
    flags.DEFINE_integer(
        "seed", None, "Of the noise; default: the config's.", lower_bound=0, upper_bound=2**32 - 1
    )
    flags.DEFINE_float("ema_decay", None, "Which moving average; default: the config's.")


def evaluate_run(
    run: Run,
    *,
    workdir: Path,
    seed: int,
    report: Callable[[str], None],
    stopped: Callable[[], bool] = lambda: False,
) -> dict[float, dict[str, Figure]] | None:
    """Measures a run at every α of its config, keeps the samples of the first, writes the figures.

    All processes sample; the first one writes. Figures of another seed or average than the config's
    stand in a file of their own, and their samples are not kept.

    Args:
      run: see `load_run`.
      workdir: gets evaluation.json, samples/final.npz and samples/final.png.
      seed: of the noise.
      report: is given each table as it is ready.
      stopped: asked before each α whether to stop.

    Returns:
      {α: {figure: value and floor}}, or None where it was stopped.
    """
    data = run.config.data
    if data.source not in SMALL_SOURCES:
        raise UserError(
            f"figures are made of {', '.join(SMALL_SOURCES)}, which a small classifier knows; this "
            f"run is of {data.source}: `python -m drifting_jax.sample` writes an .npz for an "
            "evaluation suite"
        )
    train, test = (as_arrays(make_source(data, split)) for split in ("train", "test"))
    classifier = train_classifier(
        *train,
        num_classes=run.described.num_classes,
        key=build.stream_key(run.config, "classifier"),
    )
    labels, indices = class_major(
        range(run.described.num_classes), run.config.eval.samples_per_class
    )
    found, writes = {}, jax.process_index() == 0
    name = _figures_name(run, seed)
    for cfg_scale in run.config.eval.cfg_scales:
        if stopped():
            return None
        images = run.sample(labels, indices, seed=seed, cfg_scale=cfg_scale)
        if writes and not found and name == _FIGURES:
            _keep_samples(workdir / "samples", images, labels)
        found[cfg_scale] = evaluate_samples(
            images, labels, train=train, test=test, classifier=classifier, k=run.config.eval.k
        )
        report(f"alpha {cfg_scale:g}: {figures_table(found[cfg_scale], num_samples=len(images))}")
    if writes:
        _write_figures(workdir / name, run, seed, len(labels), found)
    return found


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


def _figures_name(run: Run, seed: int) -> str:
    """The file of the run's own figures, or of these."""
    own = (run.config.seed, run.config.eval.ema_decay)
    return (
        _FIGURES
        if (seed, run.ema_decay) == own
        else (f"evaluation_seed_{seed}_ema_{run.ema_decay:g}.json")
    )


def main(_: Sequence[str]) -> None:
    """Loads, measures, prints."""
    values = flags.FLAGS
    workdir = Path(values.workdir)
    run = load_run(workdir, ema_decay=values.ema_decay)
    seed = run.config.seed if values.seed is None else values.seed
    evaluate_run(run, workdir=workdir, seed=seed, report=lambda table: print(table + "\n"))
    print(f"figures: {workdir / _figures_name(run, seed)}")


def cli() -> None:
    """Entry point of `drifting-evaluate`."""
    define_flags()
    run_program(main)


if __name__ == "__main__":
    cli()
