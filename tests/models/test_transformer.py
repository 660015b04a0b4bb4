"""Attention, whose backward pass is written by hand, against the formula differentiated by JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drifting_jax.compatibility import enable_x64
from drifting_jax.models.transformer import attention

SHAPE = (2, 7, 3, 4)  # b, t, heads, d
MANY_LOGITS = (16, 182, 4, 2)  # a CPU computes them in parts, one sample of each device at once


def draw(dtype, shape=SHAPE):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape), dtype) for _ in range(4)]


def formula(q, k, v):
    weights = jax.nn.softmax(jnp.einsum("bqnd,bknd->bnqk", q, k), axis=-1)
    return jnp.einsum("bnqk,bknd->bqnd", weights, v)


def value_and_gradients(function, *inputs):
    *inputs, g = inputs
    value, pull_back = jax.vjp(function, *inputs)
    return value, *pull_back(g)


@pytest.mark.parametrize("shape", [SHAPE, MANY_LOGITS])
def test_value_and_gradients_are_those_of_the_formula(shape):
    with enable_x64(True):
        inputs = draw(np.float64, shape)
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


def test_many_logits_are_never_all_in_memory_on_a_cpu():
    inputs = draw(np.float32, MANY_LOGITS)[:3]
    lowered = jax.jit(attention).lower(*inputs)
    b, t, heads, _ = MANY_LOGITS
    assert f"{b}x{heads}x{t}x{t}" not in lowered.as_text()
    assert f"{jax.device_count()}x{heads}x{t}x{t}" in lowered.as_text()
