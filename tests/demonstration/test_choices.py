"""What the page offers, and its line about what it does not."""

import math

import pytest

from drifting_jax.data.class_names import class_table
from drifting_jax.demonstration import choices
from drifting_jax.errors import UserError


def test_classes_are_listed_by_name_and_number():
    assert choices.class_choices(["0", "1", "cat"]) == [
        ("all classes in turn", -1),
        ("0", 0),
        ("1", 1),
        ("2: cat", 2),
    ]
    assert choices.class_choices(["1", "2"])[1:] == [("0: 1", 0), ("1: 2", 1)]  # folders 1 and 2
    imagenet = choices.class_choices(list(class_table()))
    assert len(imagenet) == 1001
    assert imagenet[208] == ("207: golden retriever", 207)
    assert imagenet[1] == ("0: tench, Tinca tinca", 0)


@pytest.mark.parametrize(
    "trained, bounds",
    [(None, (1, 4)), ((1.0, 4.0), (1, 6)), ((1.0, 2.0), (1, 3)), ((1.0, 1.0), (1, 2))],
)
def test_the_scales_that_are_offered_go_beyond_those_of_training(trained, bounds):
    assert choices.alpha_bounds(trained) == bounds


@pytest.mark.parametrize("value", [-1, 65, 10_000, 1.5, math.nan, math.inf, None, "", "ten", True])
def test_a_wrong_whole_number_is_one_line(value):
    with pytest.raises(UserError, match=r"^Samples: expected a whole number from 1 to 64; found"):
        choices.whole_number("Samples", value, 1, 64)


def test_a_whole_number_may_come_as_a_float():
    found = choices.whole_number("Seed", 3.0, 0, 2**32 - 1)
    assert (found, type(found)) == (3, int)
    assert choices.whole_number("Seed", 2**32 - 1, 0, choices.LARGEST_SEED) == 4294967295


def test_numbers_and_entries_outside_of_what_is_offered():
    assert choices.number_within("α", 1, (1.0, 3.0)) == 1.0
    for value in (0, 3.01, math.nan, None):
        with pytest.raises(UserError, match=r"^α: expected a number from 1 to 3; found"):
            choices.number_within("α", value, (1.0, 3.0))
    with pytest.raises(UserError, match=r"^α: .*found nothing$"):
        choices.number_within("α", None, (1.0, 3.0))
    assert choices.one_of("Class", 2, [1, 2]) == 2
    with pytest.raises(UserError, match=r"^Class: expected one of the list; found 3$"):
        choices.one_of("Class", 3, [1, 2])


def test_labels_of_one_class_and_of_all_in_turn():
    assert choices.labels_of(4, 3, 10) == ([4, 4, 4], [0, 1, 2])
    assert choices.labels_of(choices.ALL_CLASSES, 5, 2) == ([0, 1, 0, 1, 0], [0, 0, 1, 1, 2])


@pytest.mark.parametrize(
    "label, count, classes, columns",
    [(3, 16, 10, 4), (3, 17, 10, 5), (3, 1, 10, 1), (-1, 40, 10, 10), (-1, 9, 10, 3),
     (-1, 64, 1000, 8)],
)  # fmt: skip
def test_a_grid_is_square_or_has_a_column_for_each_class(label, count, classes, columns):
    assert choices.grid_columns(label, count, classes) == columns


def test_the_page_begins_with_all_classes_where_they_are_few():
    assert choices.first_count(10) == (choices.ALL_CLASSES, 40)
    assert choices.first_count(1000) == (0, 16)
    for classes in range(1, 30):
        assert 1 <= choices.first_count(classes)[1] <= choices.MOST_SAMPLES


def test_a_line_says_what_a_picture_took():
    assert (
        choices.timing_line(16, 0.008, None)
        == "16 samples in one network evaluation: **8 ms**, 0.5 ms a sample."
    )
    assert choices.timing_line(1, 0.12345, 2.0) == (
        "1 sample in one network evaluation: **123 ms**. "
        "The first call with 1 sample also compiled: 2.0 s."
    )
