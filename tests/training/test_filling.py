"""Whether the data and the filled queue hold enough samples of every class."""

from types import SimpleNamespace

import numpy as np
import pytest

from drifting_jax.config import base_config
from drifting_jax.data.in_memory import ArraySource
from drifting_jax.errors import UserError
from drifting_jax.training import filling

NAMES = ["ant", "bee", "cat", "dog", "elk"]


def config(positives, unconditional, *, repeats=False):
    found = base_config("generator")
    found.train.positives_per_label = positives
    found.train.unconditional_per_label = unconditional
    found.queue.allow_repeats = repeats
    return found


def queue(filled, of_any):
    """The fields that `check_queue` reads; the class after the last is the mesh's padding."""
    ring = SimpleNamespace(filled=np.array([*filled, 0], np.int32))
    return SimpleNamespace(
        by_class=ring, num_classes=len(filled), unconditional=SimpleNamespace(filled=of_any)
    )


def source(counts):
    labels = np.repeat(np.arange(len(counts)), counts)
    return ArraySource(np.zeros((len(labels), 1, 1, 1), np.uint8), labels, NAMES)


@pytest.mark.parametrize("checked", ["queue", "data"])
def test_what_is_short_is_named(checked):
    counts = (6, 6, 7, 5, 3)

    def check(*sizes, counts=counts, **more):
        if checked == "queue":
            filling.check_queue(config(*sizes, **more), queue(counts, sum(counts)), NAMES)
        else:
            filling.check_source(config(*sizes, **more), source(counts))

    check(3, 27)
    check(9, 99, repeats=True)
    with pytest.raises(UserError, match=rf"at least 4 .* of each class in the {checked}, .*: elk"):
        check(4, 0)
    with pytest.raises(UserError, match=r"4 classes: ant \(6\), bee \(6\), dog \(5\), elk \(3\);"):
        check(7, 0)
    with pytest.raises(UserError, match=r"at least 28 samples of any class .*found 27; draw fewer"):
        check(3, 28)
    with pytest.raises(UserError, match=r"at least 1 samples .*1 classes: bee \(0\);"):
        check(2, 0, counts=(1, 0, 2, 1, 1), repeats=True)


def test_labels_that_cost_a_pass_over_the_data_are_left_to_the_queue():
    few = source((1, 1, 1, 1, 1))
    with pytest.raises(UserError, match="at least 4 samples"):
        filling.check_source(config(4, 0), few)
    few.labels_are_cheap = False
    filling.check_source(config(4, 0), few)
