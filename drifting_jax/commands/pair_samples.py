"""Samples of a run of pairs, of the conditions in a file."""

from pathlib import Path
from typing import Any

import numpy as np

from drifting_jax.commands.class_choice import parse_classes
from drifting_jax.errors import UserError
from drifting_jax.pairs.data import read_conditions
from drifting_jax.pairs.generator import PairGenerator, load_pairs
from drifting_jax.pairs.pictures import rows_of_pairs
from drifting_jax.surroundings import check_devices
from drifting_jax.workdir.sample_files import write_samples


def chosen_pairs(values: Any) -> PairGenerator:
    """Starts JAX's devices and reads the generator of pairs that flags name.

    Raises:
      UserError: a flag is for generators of classes, or as `load_pairs`.
    """
    unused = {"ema_sigma": None, "vae": "", "interpolate": None, "cfg_scale": 1.0}
    if given := [name for name, empty in unused.items() if getattr(values, name) != empty]:
        raise UserError(f"--{given[0]} is for generators of classes; {values.workdir} has pairs")
    if not values.conditions:
        raise UserError(
            f"{values.workdir} makes images of conditions: give --conditions=FILE.npz, with the "
            "array condition"
        )
    check_devices()
    return load_pairs(
        values.workdir,
        ema_decay=values.ema_decay,
        step=values.step,
        batch_size=values.batch_size,
    )


def write_pair_samples(generator: PairGenerator, values: Any) -> int:
    """Writes samples of the conditions that flags name; returns their number.

    Sample k of a condition depends on the condition, the seed and k alone. In an .npz file `arr_0`
    has the samples [n, h, w, c] and `arr_1` the number of each one's condition. A .png has a row
    for each condition, with what `rows_of_pairs` shows.

    Args:
      generator: of `chosen_pairs`.
      values: flags with `conditions`, `classes`, `per_class`, `seed` and `out`.

    Raises:
      UserError: the conditions cannot be read or do not fit, or as `write_samples`.
    """
    conditions, targets = read_conditions(values.conditions)
    if conditions.shape[1:] != generator.facts.shapes.condition:
        raise UserError(
            f"the run's conditions are {['n', *generator.facts.shapes.condition]}; those of "
            f"{values.conditions} are {list(conditions.shape)}"
        )
    numbers = parse_classes(values.classes, [str(i) for i in range(len(conditions))])
    per, out = values.per_class, Path(values.out)
    samples = generator.sample(
        np.repeat(conditions[numbers], per, axis=0),
        seed=values.seed,
        indices=np.tile(np.arange(per), len(numbers)),
    )
    if out.suffix == ".npz":
        write_samples(out, samples, np.repeat(numbers, per), per_class=per)
        return len(samples)
    rows = samples.reshape(-1, per, *samples.shape[1:])
    shown = None if targets is None else targets[numbers]
    if shown is not None and shown.shape[1:] != samples.shape[1:]:
        raise UserError(
            f"image of {values.conditions} must be {['n', *samples.shape[1:]]}; found "
            f"{list(shown.shape)}"
        )
    tiles = rows_of_pairs(conditions[numbers], shown, rows, generator.facts)
    flat = tiles.reshape(-1, *tiles.shape[2:])
    write_samples(out, flat, np.repeat(numbers, tiles.shape[1]), per_class=tiles.shape[1])
    return len(samples)
