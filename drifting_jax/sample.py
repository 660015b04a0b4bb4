"""Samples of a run: `python -m drifting_jax.sample --workdir=runs/digits_quick --out=out.npz`.

Or of published weights, with nothing trained: `--weights=FOLDER --classes=207,360 --out=out.png`.

Writes an `.npz` in the format that evaluation suites read (`arr_0` [n, h, w, c] uint8, `arr_1` [n]
labels, class-major), or a `.png` grid with the classes one after another.

A generator of pairs makes images of the conditions in a file: `--workdir=runs/pairs
--conditions=FILE.npz`, or `--weights=FOLDER`. `arr_0` is then uint8, or float32 in [-1, 1] if the
run learned from floats, and `arr_1` the number of each sample's condition.

With `--interpolate=8`, each sample is followed by the way to the next one of its class: 8 images,
the first of which is the sample, and the last the next one. In a `.png`, each row shows one way.
"""

import functools
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags

from drifting_jax.commands.class_choice import describe_classes, parse_classes
from drifting_jax.commands.command_line import run_program
from drifting_jax.commands.generator_choice import (
    check_source,
    chosen_generator,
    define_average_flags,
    define_source_flags,
)
from drifting_jax.commands.pair_samples import chosen_pairs, write_pair_samples
from drifting_jax.errors import UserError
from drifting_jax.pairs.generator import is_pairs
from drifting_jax.steps.generator import Generator
from drifting_jax.steps.sampling import class_major
from drifting_jax.workdir.sample_files import check_out, write_samples


def define_flags() -> None:
    """Registers the command line's flags."""
    define_source_flags()
    flags.DEFINE_string("classes", "", "Such as 0-9, or 0,3,7-9, or names; empty for all.")
    flags.DEFINE_integer("per_class", 10, "Samples of each class or condition.", lower_bound=1)
    flags.DEFINE_string(
        "conditions",
        "",
        "Of pairs: .npz with the array condition, or .npy; --classes chooses some.",
    )
    flags.DEFINE_integer(
        "interpolate", None, "Images of a way from each sample to the next one.", lower_bound=2
    )
    flags.DEFINE_float("cfg_scale", 1.0, "Guidance scale alpha.")
    flags.DEFINE_integer("seed", 0, "Of the noise.", lower_bound=0, upper_bound=2**32 - 1)
    define_average_flags()
    flags.DEFINE_integer("batch_size", 64, "Samples made at once; not of pairs.", lower_bound=1)
    flags.DEFINE_string("out", "samples.npz", "File to write: .npz or .png.")


def main(_: Sequence[str]) -> None:
    """Loads, samples, writes, and says how long it took."""
    values = flags.FLAGS
    out = Path(values.out)
    check_out(out)
    if not 0 < values.cfg_scale < float("inf"):
        raise UserError(f"--cfg_scale must be a number above 0; found {values.cfg_scale}")
    check_source(values)
    if is_pairs(values.workdir or values.weights, is_run=bool(values.workdir)):
        of_pairs = chosen_pairs(values)
        count = write_pair_samples(of_pairs, values)
        print(f"{count} samples of step {of_pairs.step}, one network evaluation each: {out}")
        return
    if values.conditions:
        raise UserError("--conditions is for generators of pairs")
    generator = chosen_generator(values)
    if generator.alpha_range is not None:
        _note_outside(*generator.alpha_range, values.cfg_scale)
    classes = parse_classes(values.classes, generator.class_names)
    print(describe_classes(classes, generator.class_names), flush=True)
    labels, indices = class_major(classes, values.per_class)
    started = time.perf_counter()
    images, labels = _make(generator, labels, indices)
    seconds = time.perf_counter() - started
    write_samples(out, images, labels, per_class=values.interpolate or values.per_class)
    print(
        f"{len(images)} samples of step {generator.step} in {seconds:.1f} s, compilation included, "
        f"one network evaluation each: {out}"
    )


def _make(
    generator: Generator, labels: np.ndarray, indices: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the images that the flags ask for, and their labels."""
    values = flags.FLAGS
    make = generator.sample
    if values.interpolate:
        make = functools.partial(generator.interpolate, count=values.interpolate)
    images = make(
        labels,
        indices,
        seed=values.seed,
        cfg_scale=values.cfg_scale,
        batch_size=values.batch_size,
    )
    if not values.interpolate:
        return images, labels
    return images.reshape(-1, *images.shape[2:]), np.repeat(labels, values.interpolate)


def _note_outside(minimum: float, maximum: float, cfg_scale: float) -> None:
    if not minimum <= cfg_scale <= maximum:
        print(
            f"note: the generator was trained for alpha from {minimum:g} to {maximum:g}; "
            f"{cfg_scale:g} is outside",
            file=sys.stderr,
        )


def cli() -> None:
    """Entry point of `drifting-sample`."""
    define_flags()
    run_program(main)


if __name__ == "__main__":
    cli()
