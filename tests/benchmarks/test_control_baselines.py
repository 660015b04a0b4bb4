"""The baselines of control, with the best networks of a Gaussian, which are linear."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

PATH = Path(__file__).parents[2] / "benchmarks" / "control" / "baselines.py"
SPREAD = 0.2  # standard deviation of the actions; five of them are within [-1, 1]
N = 4000


@pytest.fixture(scope="module")
def baselines():
    spec = importlib.util.spec_from_file_location("control_baselines", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def noise():
    """Noise [n, 1, 1] and the key of each row."""
    return jax.random.normal(jax.random.key(0), (N, 1, 1)), jax.random.split(jax.random.key(1), N)


def sampled(chunks, network, noise):
    """The samples [n] of a sampler."""
    found = jax.jit(lambda x, keys: chunks(network, jnp.zeros((N, 1, 1)), x, keys))(*noise)
    return np.asarray(found, np.float64)[:, 0, 0]


def ancestral_spread(share):
    """The deviation of DDPM's samples: each step is linear and adds noise of the posterior."""
    before = np.concatenate([[1.0], share[:-1]])
    beta, variance = 1 - share / before, 1.0
    for b, a, a_before in zip(beta[::-1], share[::-1], before[::-1], strict=True):
        to_x0 = np.sqrt(a) * SPREAD**2 / (a * SPREAD**2 + 1 - a)
        mean = (np.sqrt(a_before) * b * to_x0 + np.sqrt(1 - b) * (1 - a_before)) / (1 - a)
        variance = mean**2 * variance + b * (1 - a_before) / (1 - a)
    return np.sqrt(variance)


def test_diffusion_samples_have_the_spread_of_the_data(baselines, noise):
    share = baselines.signal_shares()
    assert np.all(np.diff(share) < 0) and share[0] > 0.999 and share[-1] < 1e-5
    assert share[49] == pytest.approx(np.cos(0.508 / 1.008 * np.pi / 2) ** 2, rel=2e-3)
    best = jnp.asarray(np.sqrt(1 - share) / (share * SPREAD**2 + 1 - share), jnp.float32)

    def network(x, observations, time):  # E[noise | x]
        level = jnp.round(time * baselines.LEVELS).astype(int)
        return best[level][:, None, None] * x

    found = sampled(baselines.diffusion_chunks, network, noise)
    assert np.std(found) == pytest.approx(ancestral_spread(share), rel=0.04)
    assert np.std(found) == pytest.approx(SPREAD, rel=0.1)
    assert np.mean(found) == pytest.approx(0, abs=4 * SPREAD / np.sqrt(N))


def test_flow_matching_takes_eulers_steps(baselines, noise):
    def velocity(x, t):  # E[action - noise | x]
        return x * (t * SPREAD**2 - (1 - t)) / ((t * SPREAD) ** 2 + (1 - t) ** 2)

    def network(x, observations, time):
        return velocity(x, time[:, None, None])

    for name, steps in (("flow_10", 10), ("flow_1", 1)):
        expected = np.asarray(noise[0], np.float64)[:, 0, 0]
        for i in range(steps):
            expected = expected + velocity(expected, i / steps) / steps
        found = sampled(baselines.BASELINES[name][1], network, noise)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.std(found) < 1e-6  # one step ends at the mean of the data, for any noise


def test_losses_are_least_for_what_they_are_to_predict(baselines):
    actions = SPREAD * jax.random.normal(jax.random.key(2), (N, 1, 1))
    at = {"network": None}

    def network(x, observations, time):
        return at["network"](x, time[:, None, None])

    def loss(name, function):
        at["network"] = function
        value = baselines.LOSSES[name](network, jnp.zeros((N, 1, 1)), actions, jax.random.key(3))
        return float(value)

    def best_velocity(x, t):
        return x * (t * SPREAD**2 - (1 - t)) / ((t * SPREAD) ** 2 + (1 - t) ** 2)

    assert loss("flow", best_velocity) < min(
        loss("flow", lambda x, t, off=off: best_velocity(x, t) + off) for off in (-0.2, 0.2)
    )
    assert loss("regression", lambda x, t: 0 * x) == pytest.approx(SPREAD**2, rel=0.1)
    share = jnp.asarray(baselines.signal_shares(), jnp.float32)

    def best_noise(x, t, spread=SPREAD):
        a = share[jnp.round(t * baselines.LEVELS).astype(int)]
        return x * jnp.sqrt(1 - a) / (a * spread**2 + 1 - a)

    others = [lambda x, t, s=s: best_noise(x, t, s) for s in (0.15, 0.27)]
    assert loss("diffusion", best_noise) < min(loss("diffusion", other) for other in others)
