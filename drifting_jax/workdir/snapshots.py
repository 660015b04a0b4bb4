"""Snapshots of a run's power-function averages, from which an average of any width is made.

`snapshots/<step>.npz` holds `updates`, and `<width>/<path>` for each parameter of each average.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict

from drifting_jax.errors import UserError
from drifting_jax.files import write_npz
from drifting_jax.weights.files import read_tensors

PyTree = Any
_UPDATES = "updates"


class Header(NamedTuple):
    """What a snapshot holds: the number of updates, and the widths of its averages."""

    updates: int
    widths: tuple[float, ...]


def write_snapshot(
    folder: Path, *, step: int, updates: int, averages: Mapping[float, PyTree]
) -> None:
    """Writes a snapshot whole or not at all, in place of one of the same step.

    Args:
      folder: which is made.
      step: after which it was taken.
      updates: steps that were applied.
      averages: {width: float32 parameters}. They are stored as float16, which has 11 bits; an
        array with values beyond its range as float32.
    """
    arrays = {_UPDATES: np.asarray(updates, np.int64)}
    for width, params in averages.items():
        for path, array in flatten_dict(params, sep="/").items():
            arrays[f"{width:g}/{path}"] = _stored(np.asarray(array))
    folder.mkdir(exist_ok=True)
    write_npz(_file(folder, step), arrays)


def snapshot_steps(folder: Path) -> list[int]:
    """The steps of the snapshots in a folder, rising; none if there is no folder."""
    return sorted(int(path.stem) for path in folder.glob("*.npz") if path.stem.isdecimal())


def remove_from(folder: Path, step: int) -> None:
    """Removes the snapshots of a step and of all later ones."""
    for each in snapshot_steps(folder):
        if each >= step:
            _file(folder, each).unlink()


def read_header(folder: Path, step: int) -> Header:
    """Reads what a snapshot holds, without its arrays.

    Raises:
      UserError: the file is damaged, or no snapshot.
    """
    path = _file(folder, step)
    try:
        with np.load(path, allow_pickle=False) as archive:
            updates = int(archive[_UPDATES])
            names = (name for name in archive.files if name != _UPDATES)
            widths = tuple(dict.fromkeys(float(name.partition("/")[0]) for name in names))
    except Exception as error:  # damaged bytes raise anything
        raise UserError(f"{path} is damaged, or no snapshot ({error!r:.200}): delete it") from None
    return Header(updates, widths)


def read_averages(folder: Path, step: int) -> dict[float, dict[str, np.ndarray]]:
    """Reads the averages of a snapshot: {width: {path: array}}.

    Raises:
      UserError: the file is damaged.
    """
    found: dict[float, dict[str, np.ndarray]] = {}
    for name, array in read_tensors(_file(folder, step)).items():
        if name != _UPDATES:
            width, _, path = name.partition("/")
            found.setdefault(float(width), {})[path] = array
    return found


def _file(folder: Path, step: int) -> Path:
    return folder / f"{step:08d}.npz"


def _stored(array: np.ndarray) -> np.ndarray:
    fits = np.all(np.abs(array) <= np.finfo(np.float16).max)
    return array.astype(np.float16) if fits else array
