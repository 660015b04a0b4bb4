"""Measures a run, weights or images: `python -m drifting_jax.evaluate --workdir=runs/digits_quick`.

    … reference --images=/data/imagenet --image_size=256 --out=ref.npz
    … --workdir=runs/imagenet_latent --reference=ref.npz --cfg_scales=1,1.5,2 --seeds=0,1,2
    … --weights=FOLDER --vae=hf://… --reference=ref.npz
    … --images=samples.npz --reference=ref.npz
    … --workdir=runs/digits_quick --sweep --seeds=0,1,2
    … --workdir=runs/images_small --nearest
    … --workdir=runs/cifar10 --protocol=train_split

Runs of small images (digits, MNIST, CIFAR) are compared with their test split, with a small
classifier and without any downloaded weights. Everything else is measured with the usual metrics:
FID, sFID, Inception Score, KID, precision, recall, density, coverage, and the Fréchet distance of
DINOv2 features. The same command continues after a stop. `--sweep` compares every average of a run
of small images at every α. `--protocol=train_split` measures a run of small images with the usual
metrics against its training split, as FIDs of CIFAR-10 are published. `--nearest` shows samples of
a run on a folder of images beside their nearest training images, in features of the run's own
encoder, without any downloaded weights.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from drifting_jax.commands.command_line import exit_status, run_program
from drifting_jax.commands.evaluate_flags import (
    NEAREST,
    PROTOCOL,
    REFERENCE,
    SMALL,
    check_flags,
    define_flags,
    images_of,
    sample_sets_of,
    scales_of,
    seeds_of,
    setup_of,
    source_of,
)
from drifting_jax.commands.generator_choice import chosen_run
from drifting_jax.config import load_config
from drifting_jax.data.sources import SMALL_SOURCES
from drifting_jax.distributed import processes
from drifting_jax.errors import UserError
from drifting_jax.evaluation import image_evaluation, small_runs, sweep, train_split
from drifting_jax.steps.generator import Generator
from drifting_jax.surroundings import check_devices
from drifting_jax.training.nearest_images import show_nearest
from drifting_jax.training.restore import load_averages, load_generator
from drifting_jax.workdir.interruption import Interruption
from drifting_jax.workdir.stopping import StopAgreement


def main(argv: Sequence[str]) -> int:
    """Measures what the flags name."""
    values = flags.FLAGS
    if argv[1:] not in ([], ["reference"]):
        raise UserError(f"expected flags alone, or the word reference; found {argv[1]}")
    processes.initialize(
        coordinator_address=values.coordinator,
        num_processes=values.num_processes,
        process_id=values.process_id,
    )
    try:
        check_devices()
        with Interruption(
            soon="keeping what is done and stopping after this batch"
        ) as interruption:
            stops = StopAgreement(interruption)
            if argv[1:]:
                _make_reference(values, stops)
            elif values.nearest:
                _show_nearest(values)
            elif _is_small(values) and values.protocol:
                _measure_by_protocol(values, stops)
            elif _is_small(values):
                _measure_small(values, stops)
            else:
                _measure_images(values, stops)
            if interruption.exit_status and processes.is_main_process():
                print("stopped; the same command goes on", file=sys.stderr)
            return interruption.exit_status
    except BaseException as error:
        processes.end_soon(exit_status(error) if isinstance(error, UserError | OSError) else 1)
        raise


def _show_nearest(values: Any) -> None:
    """Samples of a run on a folder of images beside their nearest training images."""
    if source_of(values) != "workdir":
        raise UserError("--nearest goes with --workdir")
    check_flags(values, NEAREST)
    print(show_nearest(Path(values.workdir), training_images=values.training_images))


def _is_small(values: Any) -> bool:
    """Whether a run of small images is measured."""
    return source_of(values) == "workdir" and (
        load_config(Path(values.workdir)).get("data", {}).get("source") in SMALL_SOURCES
    )


def _measure_images(values: Any, stops: StopAgreement) -> None:
    """Images against a reference. Everything is checked before a folder is made."""
    check_flags(values, source_of(values))
    generator = _generator(values)
    out = Path(values.out or Path(values.workdir) / "evaluation")
    setup, notes = setup_of(values, out, stopped=stops)
    table = image_evaluation.evaluate_images(
        setup,
        sample_sets_of(values, generator),
        title=values.workdir or values.weights or values.images,
        notes=notes,
        generator=generator,
        training_images=values.training_images,
    )
    if table is not None:
        print(f"{table}\n\nreport: {out / image_evaluation.REPORT_FILE}")


def _measure_by_protocol(values: Any, stops: StopAgreement) -> None:
    """A run of small images against its training split."""
    check_flags(values, PROTOCOL)
    generator = chosen_run(values)
    out = Path(values.out or Path(values.workdir) / "evaluation")
    without, notes = setup_of(values, out, stopped=stops)
    assert generator.config is not None  # that of its run
    setup = train_split.with_train_split(without, generator.config.data)
    if setup is None:
        return
    table = image_evaluation.evaluate_images(
        setup,
        train_split.recorded(sample_sets_of(values, generator)),
        title=values.workdir,
        notes=notes,
        generator=generator,
    )
    if table is not None:
        print(f"{table}\n\nreport: {out / image_evaluation.REPORT_FILE}")


def _generator(values: Any) -> Generator | None:
    """The generator that the flags name; None for --images."""
    if values.weights:
        return load_generator(values.weights, vae=values.vae)
    if not values.workdir:
        return None
    return chosen_run(values)


def _make_reference(values: Any, stops: StopAgreement) -> None:
    """Statistics of real images."""
    if not values.images or not values.out.endswith(".npz"):
        raise UserError("reference: expected --images=FOLDER and --out=FILE.npz")
    check_flags(values, REFERENCE)
    path = Path(values.out)
    setup, notes = setup_of(values, path.with_suffix(".parts"), stopped=stops)
    found = image_evaluation.evaluate_reference(setup, images_of(values), path, keep=values.keep)
    if found is not None:
        lines = [f"{name}: {words}" for name, words in found.protocol.items()]
        print("\n".join([*lines, *notes, f"reference: {path}"]))


def _measure_small(values: Any, stops: StopAgreement) -> None:
    """A run of small images, with its test split and a classifier of its own."""
    check_flags(values, SMALL)
    workdir = Path(values.workdir)
    if values.sweep:
        _sweep(values, workdir, stops)
        return
    run = chosen_run(values)
    scales, seeds = scales_of(values), seeds_of(values)
    found = small_runs.evaluate_run(
        run,
        workdir=workdir,
        seeds=seeds,
        cfg_scales=scales,
        report=lambda table: print(table + "\n"),
        stopped=stops,
    )
    if found is not None and processes.is_main_process():
        metrics, page = small_runs.output_paths(run, workdir, seeds=seeds, cfg_scales=scales)
        print("\n".join([*(f"metrics: {path}" for path in metrics), f"report: {page}"]))


def _sweep(values: Any, workdir: Path, stops: StopAgreement) -> None:
    """Every average of a run of small images, at every α and seed."""
    if values.ema_decay is not None or values.ema_sigma is not None:
        raise UserError("--sweep measures every average: leave --ema_decay and --ema_sigma out")
    found = sweep.sweep_run(
        load_averages(workdir, step=values.step),
        workdir=workdir,
        seeds=seeds_of(values),
        cfg_scales=scales_of(values),
        report=lambda table: print(table + "\n"),
        stopped=stops,
    )
    if found is not None and processes.is_main_process():
        print(f"sweep: {workdir / sweep.FILE}")


def cli() -> None:
    """Entry point of `drifting-evaluate`."""
    define_flags()
    run_program(main, words=1)


if __name__ == "__main__":
    cli()
