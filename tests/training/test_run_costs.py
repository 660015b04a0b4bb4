"""Hours, energy and price of a run, by hand."""

import math

import pytest

from drifting_jax.errors import UserError
from drifting_jax.training.run_costs import StageTime, check_price, duration, run_cost


def test_hours_energy_and_price():
    """1,000 steps of 3.6 s are an hour, 500 of 14.4 s are two; on two cards of 450 W."""
    stages = [StageTime("encoder", 1000, 3.6), StageTime("generator", 500, 14.4)]
    cost = run_cost(stages, devices=2, watts=450, price_per_hour=2.5)
    assert cost.hours == pytest.approx(3)
    assert cost.kilowatt_hours == pytest.approx(2.7)
    assert cost.price == pytest.approx(15)
    unknown = run_cost(stages, devices=2, watts=None, price_per_hour=None)
    assert (unknown.kilowatt_hours, unknown.price) == (None, None)


def test_times_in_words():
    seconds = (0.0047, 12.34, 210, 97200, 3.6e7)
    assert [duration(x) for x in seconds] == ["4.7 ms", "12.3 s", "3.5 min", "27.0 h", "10,000.0 h"]


@pytest.mark.parametrize("price", [0, -2.5, math.nan, math.inf])
def test_a_price_that_is_none(price):
    with pytest.raises(UserError, match=rf"number above 0, such as 2.5; found {price:g}$"):
        check_price(price)
    check_price(2.5)
    check_price(None)
