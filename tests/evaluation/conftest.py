"""What several files of this folder measure with."""

import jax
import pytest

from drifting_jax.data.sources import DigitsSource, as_arrays
from drifting_jax.evaluation.features.classifier import train_classifier


@pytest.fixture(scope="session")
def real():
    """Images and labels of digits, by the name of their split."""
    return {"train": as_arrays(DigitsSource("train")), "test": as_arrays(DigitsSource("test"))}


@pytest.fixture(scope="session")
def classifier(real):
    """The classifier of digits; its training takes seconds."""
    return train_classifier(*real["train"], num_classes=10, key=jax.random.key(0))
