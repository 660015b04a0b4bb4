"""Power-function averages and their fit, against integrals and averages computed directly."""

import jax
import numpy as np
import pytest

from drifting_jax.steps.power_averages import fit_average, gamma_of, update_average, width_of

WIDTHS = (0.05, 0.1)


def weights_of(gamma: float, updates: int) -> np.ndarray:
    """The weight of each update: the profile's integral over it."""
    ends = (np.arange(updates + 1.0) / updates) ** (gamma + 1)
    return np.diff(ends)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 6.94, 16.97, 97.0])
def test_the_width_is_the_standard_deviation_of_the_profile(gamma):
    time = (np.arange(400_000) + 0.5) / 400_000
    density = (gamma + 1) * time**gamma
    mean = np.mean(density * time)
    deviation = np.sqrt(np.mean(density * (time - mean) ** 2))
    assert width_of(gamma) == pytest.approx(deviation, rel=1e-6)
    assert gamma_of(deviation) == pytest.approx(gamma, rel=1e-4, abs=1e-4)


def test_the_exponents_that_edm2_names():
    assert [round(gamma_of(width), 2) for width in WIDTHS] == [16.97, 6.94]


@pytest.mark.parametrize("width", [0.0, -0.1, 0.29, float("nan")])
def test_a_width_of_no_profile_is_refused(width):
    with pytest.raises(ValueError, match="expected a width above 0 and at most"):
        gamma_of(width)


def test_late_updates_keep_their_digits():
    """A plain 1 - 1/t in float32 is 0.4% off here."""
    updates = 3_000_017
    update = jax.jit(lambda a, p: update_average(a, p, width=0.05, updates=updates))
    expected = -np.expm1((gamma_of(0.05) + 1) * np.log1p(-1 / np.float64(updates)))
    assert float(update(0.0, 1.0)) == pytest.approx(expected, rel=1e-5)


@pytest.fixture(scope="module")
def recorded():
    """The parameters [t, 6] of a noisy descent, and averages of it at 16 times."""
    rng, updates = np.random.default_rng(0), 400
    params = np.cumsum(rng.normal(size=(updates, 6)), axis=0)
    kept = [
        (width, time, weights_of(gamma_of(width), time) @ params[:time])
        for time in range(25, updates + 1, 25)
        for width in WIDTHS
    ]
    return params, *zip(*kept, strict=True)


@pytest.mark.parametrize(
    ("width", "largest"), [(0.05, 1e-6), (0.07, 5e-3), (0.1, 1e-6), (0.15, 2e-2)]
)
def test_an_average_of_another_width_is_made_of_those_that_were_kept(recorded, width, largest):
    params, widths, times, averages = recorded
    fit = fit_average(widths, times, width=width, time=times[-1])
    found = fit.coefficients @ np.stack(averages)
    wanted = weights_of(gamma_of(width), len(params))
    expected = wanted @ params
    assert np.abs(found - expected).max() <= largest * np.abs(params).max()
    # The error is that of the profiles, here summed over single updates.
    profile = np.zeros(len(params))
    for x, kept, time in zip(fit.coefficients, widths, times, strict=True):
        profile[:time] += x * weights_of(gamma_of(kept), time)
    error = np.linalg.norm(profile - wanted) / np.linalg.norm(wanted)
    assert fit.error == pytest.approx(error, rel=0.1, abs=1e-6)
    assert fit.error <= largest


def test_a_width_far_from_those_that_were_kept_has_a_large_error(recorded):
    _, widths, times, _ = recorded
    assert fit_average(widths, times, width=0.012, time=times[-1]).error > 0.2
