"""Attention, whose backward pass is written by hand, against the formula differentiated by JAX."""

import jax
import jax.numpy as jnp
import numpy as np

from drifting_jax.compatibility import enable_x64
from drifting_jax.models.transformer import attention

SHAPE = (2, 7, 3, 4)  # b, t, heads, d


def draw(dtype):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=SHAPE), dtype) for _ in range(4)]


def formula(q, k, v):
    weights = jax.nn.softmax(jnp.einsum("bqnd,bknd->bnqk", q, k), axis=-1)
    return jnp.einsum("bnqk,bknd->bqnd", weights, v)


def value_and_gradients(function, *inputs):
    *inputs, g = inputs
    value, pull_back = jax.vjp(function, *inputs)
    return value, *pull_back(g)


def test_value_and_gradients_are_those_of_the_formula():
    with enable_x64(True):
        inputs = draw(np.float64)
        found = value_and_gradients(attention, *inputs)
        for ours, wanted in zip(found, value_and_gradients(formula, *inputs), strict=True):
            assert ours.dtype == np.float64
            np.testing.assert_allclose(ours, wanted, rtol=1e-10, atol=1e-12)


def test_bfloat16_has_gradients_near_those_of_float32():
    found = value_and_gradients(attention, *draw(jnp.bfloat16))
    for ours, wanted in zip(found, value_and_gradients(formula, *draw(np.float32)), strict=True):
        assert ours.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.float32(ours), wanted, atol=0.05 * np.abs(wanted).max())


def test_no_weights_are_kept_for_the_backward_pass():
    q, k, v, _ = draw(np.float32)
    _, pull_back = jax.vjp(attention, q, k, v)
    assert {leaf.shape for leaf in jax.tree.leaves(pull_back)} == {SHAPE}
