"""Files that the page shows and offers for download, in a temporary folder."""

import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from drifting_jax.files import write_npz
from drifting_jax.workdir.image_files import image_grid, save_png

_LEAST_GRID_PIXELS = 512


class Files(NamedTuple):
    """A picture that is shown, and the arrays behind it."""

    png: Path
    npz: Path


def write_images(
    folder: Path, name: str, images: np.ndarray, labels: np.ndarray, *, columns: int
) -> Files:
    """Writes a grid as .png, and `arr_0` and `arr_1` as .npz, as the sample command does.

    Args:
      folder: gets a folder of its own for these two files.
      name: of the files, without an ending.
      images: [n, h, w, c] uint8.
      labels: [n] int32.
      columns: images in a row of the grid.
    """
    files = new_files(folder, name)
    save_png(files.png, image_grid(images, columns, least=_LEAST_GRID_PIXELS))
    write_npz(files.npz, {"arr_0": images, "arr_1": labels})
    return files


def new_files(folder: Path, name: str) -> Files:
    """Returns paths of two files in a new folder below `folder`."""
    own = Path(tempfile.mkdtemp(dir=folder))
    return Files(own / f"{name}.png", own / f"{name}.npz")
