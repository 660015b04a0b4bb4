"""How many positives pull a sample, and which samples none reaches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drifting_jax.compatibility import enable_x64
from drifting_jax.method.fields.options import DriftOptions
from drifting_jax.method.losses import drifting_loss

C, G, P, T, D = 2, 6, 5, 3, 4


def draw():
    """Samples [c, g, t, d] of which two lie far from all positives, and positives."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(C, G, T, D)), rng.normal(size=(C, P, T, D))
    x[0, :2] += 30
    return x, y


@functools.partial(jax.jit, static_argnums=0)
def loss_of(options, x, y):
    loss = functools.partial(drifting_loss, options=options)
    return jax.value_and_grad(loss, has_aux=True)(x, y)


def affinities(x, y, tau, scale):
    """[c, t, g, p] of positives, before any floor, in units of S."""
    x, y = (np.swapaxes(a, 1, 2) for a in (x, y))
    targets = np.concatenate([x, y], axis=2)
    r = np.linalg.norm(x[:, :, :, None] - targets[:, :, None], axis=-1) / scale
    r[..., np.arange(G), np.arange(G)] += 100
    k = np.exp(-r / tau)
    return (k / np.sqrt(k.sum(3, keepdims=True) * k.sum(2, keepdims=True)))[..., G:]


@pytest.mark.parametrize("combine", ["crossed", "separate"])
@pytest.mark.parametrize("floor", [0.0, 1e-2])
def test_reach_of_the_mean_shift(combine, floor):
    """From its affinities: 1/Σa² of their shares, and samples whose affinities are at the floor."""
    options = DriftOptions((0.1, 0.4), floor, combine=combine, measure_reach=True)
    with enable_x64(True):
        (_, found), _ = loss_of(options, *map(jnp.asarray, draw()))
    for i, tau in enumerate(options.temperatures):
        a = affinities(*draw(), tau, float(found.distance_scale))
        out = (a <= floor**0.5).all(-1)
        a = np.maximum(a, floor**0.5)
        effective = np.where(out, 0, a.sum(-1) ** 2 / (a**2).sum(-1))
        np.testing.assert_allclose(found.unreached[i], out.mean(), rtol=1e-12)
        np.testing.assert_allclose(found.effective_positives[i], effective.mean(), rtol=1e-6)
        assert bool(floor) == (0 < out.mean() < 1)


def test_reach_of_fields_with_known_weights():
    """k nearest at one distance weigh alike; a Gaussian kernel does not reach far in float32."""
    x, y = np.zeros((1, 2, 1, 8), np.float32), np.zeros((1, 5, 1, 8), np.float32)
    y[0, :, 0, :5] = np.diag([1, 1, 1, 2, 2])
    nearest = DriftOptions(field="energy", neighbours=3, measure_reach=True)
    (_, found), _ = loss_of(nearest, jnp.asarray(x), jnp.asarray(y))
    np.testing.assert_allclose(found.effective_positives, [3], rtol=1e-6)
    np.testing.assert_array_equal(found.unreached, [0])
    x, y = (np.float32(a) for a in draw())
    gaussian = DriftOptions((0.02, 3.0), field="mmd", measure_reach=True)
    (_, found), _ = loss_of(gaussian, jnp.asarray(x), jnp.asarray(y))
    assert found.unreached[0] >= 2 / 12 and found.unreached[1] == 0
    assert found.effective_positives[1] > 0.8 * P


@pytest.mark.parametrize("options", [{}, {"combine": "separate"}, {"field": "w_flow"}], ids=str)
def test_measuring_changes_no_bit_of_the_loss(options):
    x, y = (jnp.float32(a) for a in draw())
    if "field" in options:
        options = options | {"negatives": "own"}
    plain, measured = (
        loss_of(DriftOptions(**options, measure_reach=measure), x, y) for measure in (False, True)
    )
    assert plain[0][1].unreached is None and measured[0][1].unreached.shape == (3,)
    np.testing.assert_array_equal(plain[0][0], measured[0][0])
    np.testing.assert_array_equal(plain[1], measured[1])


def test_one_positive_reaches_where_its_affinity_is_at_the_floor():
    x, y = (np.float32(a) for a in draw())
    options = DriftOptions((0.05,), measure_reach=True)
    (_, found), _ = loss_of(options, jnp.asarray(x), jnp.asarray(y[:, :1]))
    np.testing.assert_allclose(found.effective_positives, [1], rtol=1e-6)
    np.testing.assert_array_equal(found.unreached, [0])
