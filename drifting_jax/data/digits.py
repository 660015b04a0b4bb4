"""The 1797 hand-written digits that come with scikit-learn."""

from __future__ import annotations

import numpy as np

from drifting_jax.data.in_memory import ArraySource
from drifting_jax.errors import UserError


class DigitsSource(ArraySource):
    """One split of the digits: images [8, 8, 1] uint8 of 10 classes.

    A stratified quarter (450 digits) is the test split, the other 1347 the training split. The 17
    grey levels 0..16 are spread over 0..255.

    Raises:
      UserError: a split of another name.
    """

    def __init__(self, split: str = "train"):
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        if split not in ("train", "test"):
            raise UserError(f"digits have the splits 'train' and 'test', found {split!r}")
        levels, labels = load_digits(return_X_y=True)
        train, test = train_test_split(
            np.arange(len(labels)), test_size=0.25, random_state=0, stratify=labels
        )
        chosen = train if split == "train" else test
        images = np.rint(levels[chosen] * 255.0 / 16.0).astype(np.uint8).reshape(-1, 8, 8, 1)
        super().__init__(images, labels[chosen], [str(digit) for digit in range(10)])
