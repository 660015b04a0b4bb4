"""The distribution of alpha and the unconditional weight: released numbers, and the law itself."""

from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drifting_jax.method import guidance

ARRAYS = np.load(Path(__file__).parents[1] / "fixtures" / "release" / "F_train_step.npz")
LAWS = [(1.0, 4.0, p) for p in (1.0, 3.0, 5.0)] + [(1.0, 2.5, p) for p in (1.0, 3.0, 5.0)]
DRAWS = 40_000


def cumulative(alpha, minimum, maximum, power):
    """Share of the density alpha^-power on [minimum, maximum] below alpha, in float64."""
    alpha = np.asarray(alpha, np.float64)
    if power == 1:
        return np.log(alpha / minimum) / np.log(maximum / minimum)
    e = 1.0 - power
    return (alpha**e - minimum**e) / (maximum**e - minimum**e)


def draw(key, *, minimum=1.0, maximum=4.0, power=3.0, probability_of_one=0.0):
    sample = jax.jit(
        lambda k: guidance.sample_cfg_scale(
            k,
            (DRAWS,),
            minimum=minimum,
            maximum=maximum,
            power=power,
            probability_of_one=probability_of_one,
        )
    )
    return np.asarray(sample(key))


@pytest.mark.parametrize("law", LAWS)
def test_scale_equals_the_release(law):
    minimum, maximum, power = law
    prefix = f"cfglaw/min{minimum}_max{maximum}_pw{power}"
    scale = guidance.cfg_scale_from_uniform(
        ARRAYS["cfglaw/frac"], minimum=minimum, maximum=maximum, power=power
    )
    np.testing.assert_allclose(scale, ARRAYS[f"{prefix}/cfg"], rtol=1e-6)
    assert scale.dtype == np.float32


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("generated, unconditional", [(64, 16), (64, 32), (8, 0)])
def test_weight_equals_the_release(law, generated, unconditional):
    minimum, maximum, power = law
    prefix = f"cfglaw/min{minimum}_max{maximum}_pw{power}"
    weight = guidance.unconditional_weight(
        ARRAYS[f"{prefix}/cfg"],
        negatives=generated - 1,
        unconditional=unconditional,
    )
    expected = ARRAYS[f"{prefix}/uncond_w_gen{generated}_neg{unconditional}"]
    np.testing.assert_allclose(weight, expected, rtol=1e-6, atol=1e-6)


def test_weight_gives_the_unconditional_samples_their_share_of_the_negatives():
    alpha, g, u = np.linspace(1.0, 4.0, 7), 16, 5
    weight = guidance.unconditional_weight(alpha, negatives=g - 1, unconditional=u)
    share = u * weight / (u * weight + g - 1)  # the others of a sample's own class weigh 1 each
    np.testing.assert_allclose(share, 1 - 1 / alpha, rtol=1e-6, atol=1e-7)


@settings(max_examples=40, deadline=None)
@given(
    uniform=st.floats(0, 1, width=32),
    minimum=st.floats(0.5, 2.0, width=32),
    width=st.floats(0, 4.0, width=32),
    power=st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.0, 5.0]),
)
def test_scale_inverts_the_cumulative_density(uniform, minimum, width, power):
    maximum = minimum + width
    scale = guidance.cfg_scale_from_uniform(
        np.float32(uniform), minimum=minimum, maximum=maximum, power=power
    )
    assert np.float32(minimum) <= scale <= np.float32(maximum)
    if width > 0.1:
        found = cumulative(scale, minimum, maximum, power)
        np.testing.assert_allclose(found, uniform, atol=2e-5)


@pytest.mark.parametrize("power", [0.0, 1.0, 3.0])
def test_draws_follow_the_density(power):
    scale = np.sort(draw(jax.random.key(3), power=power))
    distance = np.abs(cumulative(scale, 1.0, 4.0, power) - (np.arange(DRAWS) + 0.5) / DRAWS).max()
    # Kolmogorov and Smirnov: a right law exceeds this once in a hundred keys.
    assert distance < 1.63 / DRAWS**0.5


def test_a_share_of_the_rows_has_scale_one():
    scale = draw(jax.random.key(0), probability_of_one=0.3)
    assert abs(np.mean(scale == 1.0) - 0.3) < 0.01
    others = np.sort(scale[scale != 1.0])
    ranks = (np.arange(len(others)) + 0.5) / len(others)
    assert np.abs(cumulative(others, 1.0, 4.0, 3.0) - ranks).max() < 0.02
    assert np.all(draw(jax.random.key(0), probability_of_one=1.0) == 1.0)
    assert np.all(draw(jax.random.key(0), minimum=1.5, probability_of_one=1.0) == 1.0)


def test_keys_decide():
    first, second = draw(jax.random.key(0)), draw(jax.random.key(1))
    np.testing.assert_array_equal(first, draw(jax.random.key(0)))
    assert np.mean(first == second) < 0.01


@pytest.mark.parametrize("minimum, maximum", [(2.0, 1.0), (0.0, 1.0), (-1.0, 1.0)])
def test_an_empty_range_is_an_error(minimum, maximum):
    with pytest.raises(ValueError, match="minimum <= maximum"):
        guidance.cfg_scale_from_uniform(
            np.float32(0.5), minimum=minimum, maximum=maximum, power=3.0
        )
