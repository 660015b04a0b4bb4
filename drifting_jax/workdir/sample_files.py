"""Files of samples: `.npz` as evaluation suites read them, or a grid as `.png`."""

import os
from pathlib import Path

import numpy as np

from drifting_jax.errors import UserError
from drifting_jax.workdir.image_files import image_grid, save_png

_MOST_COLUMNS = 36
_LEAST_GRID_PIXELS = 400


def write_samples(
    path: Path,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    per_class: int,
    columns: int | None = None,
) -> None:
    """Writes a file of samples, whole or not at all.

    Args:
      path: ends in .npz, for `arr_0` = images and `arr_1` = labels, or in .png, for a grid.
      images: [n, h, w, c] uint8; an .npz may also have float32, in [-1, 1].
      labels: [n] integers.
      per_class: samples that belong together, of a class or of a way from one sample to another;
        no row of the grid mixes them.
      columns: images in a row of the grid; None for the largest divisor of `per_class` up to 36.

    Raises:
      UserError: the file's ending is neither .npz nor .png, or its folder does not exist.
    """
    check_out(path)
    partial = path.with_name(f".{path.name}.partial{path.suffix}")
    if path.suffix == ".npz":
        np.savez_compressed(partial, arr_0=images, arr_1=labels)
    else:
        if columns is None:
            columns = max(n for n in range(1, _MOST_COLUMNS + 1) if per_class % n == 0)
        save_png(partial, image_grid(images, columns, least=_LEAST_GRID_PIXELS))
    os.replace(partial, path)


def check_out(path: Path) -> None:
    """Checks that `write_samples` can write to the path.

    Raises:
      UserError: as `write_samples`.
    """
    if path.suffix not in (".npz", ".png"):
        raise UserError(f"--out must end in .npz or .png; found {path}")
    if not path.parent.is_dir():
        raise UserError(f"the folder of --out does not exist: {path.parent}")
