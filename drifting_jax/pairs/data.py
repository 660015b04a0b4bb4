"""Pairs of a condition and an image: read from files, checked, and given as records."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from drifting_jax.data.in_memory import DecodedSource
from drifting_jax.data.neighbours import nearest_conditions
from drifting_jax.digests import digest_values
from drifting_jax.errors import UserError, first_line
from drifting_jax.steps.scaling import Scaling

CONDITION, IMAGE = "condition", "image"


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Conditions with an image each.

    Attributes:
      conditions: [n, ...] float32, in the units of the data.
      images: [n, h, w, c] uint8, or float32 in [-1, 1].
    """

    conditions: np.ndarray
    images: np.ndarray

    @property
    def fingerprint(self) -> str:
        """Digits that tell these pairs from others."""
        shapes = self.conditions.shape, self.images.shape
        return digest_values(shapes, self.conditions, self.images)

    def split(self, held_out: int) -> "tuple[Pairs, Pairs | None]":
        """Returns all pairs but the last `held_out`, and these; None for none.

        Raises:
          UserError: no pair is left.
        """
        count = len(self.images) - held_out
        if count < 1:
            raise UserError(
                f"config.data.held_out must be below the {len(self.images)} pairs; found {held_out}"
            )
        first, last = slice(count), slice(count, None)
        return self.part(first), self.part(last) if held_out else None

    def part(self, chosen: Any) -> "Pairs":
        """Returns the pairs of an index, such as a slice or numbers [k]."""
        return Pairs(self.conditions[chosen], self.images[chosen])

    def spread(self, most: int) -> "Pairs":
        """Returns some pairs that are spread evenly, at most so many."""
        count = len(self.images)
        found = min(count, most)
        return self.part(((np.arange(found) + 0.5) * count / found).astype(np.int64))


def read_pairs(path: str) -> Pairs:
    """Reads and checks the pairs of an .npz file.

    Args:
      path: of the file, config.data.path.

    Raises:
      UserError: there is no such file, or it does not hold pairs.
    """
    if not path:
        raise UserError(
            "config.data.path must name the pairs, such as --config.data.path=pairs.npz"
        )
    if not Path(path).is_file():
        raise UserError(f"config.data.path={path} is no file")
    arrays = _arrays(path, (CONDITION, IMAGE))
    if missing := [name for name in (CONDITION, IMAGE) if name not in arrays]:
        raise UserError(
            f"{path} must hold the arrays condition and image; found no {' and no '.join(missing)}"
        )
    conditions, images = _conditions(arrays[CONDITION], path), _images(arrays[IMAGE], path)
    _check_lengths(conditions, images, path)
    return Pairs(conditions, images)


def read_conditions(
    path: str, *, with_images: bool = False
) -> tuple[np.ndarray, np.ndarray | None]:
    """Reads the conditions [n, ...] float32 of a file to sample from, and any images of them.

    Args:
      path: an .npz file with the array condition, and perhaps image; or an .npy file of conditions.
      with_images: whether to read image; None takes its place otherwise, and where there is none.

    Raises:
      UserError: there is no such file, or it holds none.
    """
    if not Path(path).is_file():
        raise UserError(f"there is no file {path} of conditions")
    arrays = _arrays(path, (CONDITION, IMAGE) if with_images else (CONDITION,))
    if CONDITION not in arrays:
        raise UserError(f"{path} must hold the array condition; found none")
    conditions = _conditions(arrays[CONDITION], path)
    if IMAGE not in arrays:
        return conditions, None
    images = _images(arrays[IMAGE], path)
    _check_lengths(conditions, images, path)
    return conditions, images


def as_floats(images: np.ndarray) -> np.ndarray:
    """Images uint8, or float in [-1, 1] -> float32 in [-1, 1]."""
    if images.dtype == np.uint8:
        return images.astype(np.float32) / np.float32(127.5) - np.float32(1)
    return images.astype(np.float32, copy=False)


class PairSource(DecodedSource):
    """Pairs as records, their conditions scaled to [-1, 1].

    A record is {"condition": [...] float32, "target": [p, h, w, c] float32, "label": 0}. Its
    targets are its image and then those of its `neighbours`, p - 1 pairs of the nearest conditions.
    If there are any, "distance" [p] float32 says how far these are.

    Attributes:
      conditions: [n, ...] float32, scaled.
      images: [n, h, w, c], as of `Pairs`.

    Raises:
      UserError: there are not so many pairs.
    """

    image_dtype = np.dtype(np.float32)
    num_classes, class_names = 1, ["pairs"]

    def __init__(self, pairs: Pairs, scaling: Scaling, *, neighbours: int = 0):
        self.fingerprint = pairs.fingerprint
        self.conditions = scaling.scaled(pairs.conditions).astype(np.float32)
        self.images, self.image_shape = pairs.images, pairs.images.shape[1:]
        self._nearest, self._distance = np.arange(len(self))[:, None], None
        if neighbours:
            flat = self.conditions.reshape(len(self), -1)
            self._nearest, self._distance = nearest_conditions(flat, neighbours)

    @property
    def labels(self) -> np.ndarray:
        """[n] int32, all of one class."""
        return np.zeros(len(self), np.int32)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = {
            "condition": self.conditions[index],
            "target": as_floats(self.images[self._nearest[index]]),
            "label": np.int32(0),
        }
        return record if self._distance is None else record | {"distance": self._distance[index]}

    def name(self, index: int) -> str:
        """What a pair is called in messages."""
        return f"pair {index}"


def _arrays(path: str, names: tuple[str, ...]) -> Mapping[str, np.ndarray]:
    """Those arrays of an .npz file that have these names, or that of an .npy file as condition."""
    try:
        found = np.load(path)
        if isinstance(found, np.ndarray):
            return {CONDITION: found}
        with found:
            return {name: found[name] for name in found.files if name in names}
    except Exception as error:  # of many types, for damaged files
        raise UserError(f"{path} cannot be read as .npz: {first_line(error)}") from None


def _conditions(array: np.ndarray, path: str) -> np.ndarray:
    """Conditions as float32, [n, 1] for single numbers."""
    if array.ndim < 1 or 0 in array.shape or array.dtype.kind not in "iuf":
        raise UserError(
            f"condition of {path} must be numbers [n, ...], not empty; found "
            f"{list(array.shape)} {array.dtype}"
        )
    with np.errstate(over="ignore"):  # what float32 cannot hold is told below
        array = array.astype(np.float32)
    _check_finite(array, CONDITION, path)
    return array[:, None] if array.ndim == 1 else array


def _images(array: np.ndarray, path: str) -> np.ndarray:
    """Images as uint8 or float32."""
    is_float = array.dtype.kind == "f"
    if array.ndim != 4 or 0 in array.shape or not (is_float or array.dtype == np.uint8):
        raise UserError(
            f"image of {path} must be [n, h, w, c], uint8 or floats from -1 to 1; found "
            f"{list(array.shape)} {array.dtype}"
            + (", without channels: write image[..., None]" if array.ndim == 3 else "")
        )
    if not is_float:
        return array
    _check_finite(array, IMAGE, path)
    least, most = array.min(), array.max()
    if least < -1 or most > 1:
        raise UserError(
            f"floats of image in {path} must be from -1 to 1; found {least:g} to {most:g}: scale "
            "them, or store uint8"
        )
    return array.astype(np.float32)


def _check_finite(array: np.ndarray, name: str, path: str) -> None:
    bad = np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(axis=1))
    if len(bad):
        raise UserError(f"{name} of {path} must be finite; entry {bad[0]} is not")


def _check_lengths(conditions: np.ndarray, images: np.ndarray, path: str) -> None:
    if len(conditions) != len(images):
        raise UserError(
            f"{path} must have one image for each condition; found {len(conditions)} conditions "
            f"and {len(images)} images"
        )
