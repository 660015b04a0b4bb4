"""The toys' generator."""

import jax
import numpy as np
import pytest

from drifting_jax.models.mlp import MLP


def test_equals_float64():
    noise = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    model = MLP(widths=(8, 4), out_features=2)
    params = jax.jit(model.init)(jax.random.key(0), noise)
    points = jax.jit(model.apply)(params, noise)
    x = noise.astype(np.float64)
    for name in ("hidden_0", "hidden_1", "output"):
        layer = params["params"][name]
        x = x @ np.asarray(layer["kernel"], np.float64) + np.asarray(layer["bias"], np.float64)
        if name != "output":
            x = x / (1 + np.exp(-x))
    assert points.shape == (5, 2)
    assert points.dtype == np.float32
    np.testing.assert_allclose(points, x, atol=1e-5)
    assert np.std(x) > 0.05  # the start is spread out, not a point


def test_noise_of_another_rank_is_refused():
    with pytest.raises(ValueError, match=r"noise must be \[b, n\]"):
        MLP().init(jax.random.key(0), np.zeros((2, 3, 4), np.float32))
