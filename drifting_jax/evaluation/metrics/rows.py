"""Checks features and reads them a block of rows at a time, without a float64 copy of all."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

_ROWS = 4096


def check_rows(features: np.ndarray, *, least: int = 1, shape: str = "features [n,d]") -> None:
    """Makes sure that an array is a matrix of finite rows.

    Args:
      features: [n,d] of any float dtype; an array on disk is read a block at a time.
      least: rows that are needed.
      shape: words for the array in the message.

    Raises:
      ValueError: not a matrix, fewer than `least` rows, or rows that are not finite.
    """
    if features.ndim != 2 or len(features) < least or not features.shape[1]:
        raise ValueError(
            f"expected {shape} with n of {least} or more, found {tuple(features.shape)}"
        )
    bad = sum(
        np.count_nonzero(~np.isfinite(block).all(axis=1)) for _, block in row_blocks(features)
    )
    if bad:
        raise ValueError(
            f"expected finite {shape.partition(' ')[0]}, "
            f"found {bad} rows of {len(features)} that are not"
        )


def row_blocks(
    features: np.ndarray, rows: np.ndarray | None = None, *, size: int = _ROWS
) -> Iterator[tuple[int, np.ndarray]]:
    """Float64 blocks [size,d] of an array, the last one shorter, each with its first position.

    Args:
      features: [n,d].
      rows: [m] row numbers to read, in this order; None for all.
      size: rows in a block.
    """
    for first in range(0, len(features) if rows is None else len(rows), size):
        part = slice(first, first + size)
        yield first, np.asarray(features[part if rows is None else rows[part]], np.float64)
