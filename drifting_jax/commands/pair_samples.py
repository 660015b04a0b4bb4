"""Samples of a generator of pairs, of the conditions in a file."""

import sys
from pathlib import Path
from typing import Any

import numpy as np

from drifting_jax.commands.class_choice import parse_classes
from drifting_jax.errors import UserError
from drifting_jax.pairs.data import read_conditions
from drifting_jax.pairs.generator import PairGenerator, load_pairs
from drifting_jax.pairs.pictures import rows_of_pairs
from drifting_jax.steps.scaling import far_outside
from drifting_jax.surroundings import check_devices
from drifting_jax.workdir.sample_files import write_samples


def chosen_pairs(values: Any) -> PairGenerator:
    """Starts JAX's devices and reads the generator of pairs that flags name.

    Raises:
      UserError: a flag is for generators of classes, or as `load_pairs`.
    """
    unused = {
        "ema_sigma": None,
        "vae": "",
        "interpolate": None,
        "cfg_scale": 1.0,
        "batch_size": 64,
    }
    name = values.workdir or values.weights
    if given := [flag for flag, empty in unused.items() if getattr(values, flag) != empty]:
        raise UserError(f"--{given[0]} is for generators of classes; {name} has pairs")
    if not values.conditions:
        raise UserError(
            f"{name} makes images of conditions: give --conditions=FILE.npz, with the "
            "array condition"
        )
    check_devices()
    return load_pairs(name, ema_decay=values.ema_decay, step=values.step)


def write_pair_samples(generator: PairGenerator, values: Any) -> int:
    """Writes samples of the conditions that flags name; returns their number.

    Sample k of a condition depends on the condition, the seed and k alone. In an .npz file `arr_0`
    has the samples [n, h, w, c], uint8 or float32 in [-1, 1] as the images that the run learned
    from, and `arr_1` the number of each one's condition. A .png has a row for each condition, with
    what `rows_of_pairs` shows.

    Args:
      generator: of `chosen_pairs`.
      values: flags with `conditions`, `classes`, `per_class`, `seed` and `out`.

    Raises:
      UserError: the conditions cannot be read or do not fit, or as `write_samples`.
    """
    per, out = values.per_class, Path(values.out)
    conditions, targets = _read(generator, values.conditions, with_images=out.suffix == ".png")
    numbers = parse_classes(values.classes, [str(i) for i in range(len(conditions))])
    chosen = conditions[numbers]
    if (outside := far_outside(generator.facts.scaling, chosen)) is not None:
        print(
            f"warning: {outside.rows} of {len(chosen)} conditions are {outside.words}",
            file=sys.stderr,
        )
    samples = generator.sample(
        np.repeat(chosen, per, axis=0),
        seed=values.seed,
        indices=np.tile(np.arange(per), len(numbers)),
    )
    if out.suffix == ".npz":
        write_samples(out, samples, np.repeat(numbers, per), per_class=per)
        return len(samples)
    rows = samples.reshape(-1, per, *samples.shape[1:])
    shown = None if targets is None else targets[numbers]
    tiles = rows_of_pairs(chosen, shown, rows, generator.facts)
    columns = tiles.shape[1]
    flat, labels = tiles.reshape(-1, *tiles.shape[2:]), np.repeat(numbers, columns)
    write_samples(out, flat, labels, per_class=columns, columns=columns)
    return len(samples)


def _read(
    generator: PairGenerator, path: str, *, with_images: bool
) -> tuple[np.ndarray, np.ndarray | None]:
    """The conditions of a file, and its images or None, of the shapes that the generator has."""
    conditions, images = read_conditions(path, with_images=with_images)
    shapes = generator.facts.shapes
    if conditions.shape[1:] != shapes.condition:
        raise UserError(
            f"the generator's conditions are {['n', *shapes.condition]}; those of {path} are "
            f"{list(conditions.shape)}"
        )
    if images is not None and images.shape[1:] != shapes.image:
        raise UserError(
            f"image of {path} must be {['n', *shapes.image]}; found {list(images.shape)}"
        )
    return conditions, images
