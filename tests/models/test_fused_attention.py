"""The kernel of GPUs, run by Pallas' interpreter, against the formula in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drifting_jax.models import fused_attention
from drifting_jax.models.transformer import attention, attention_on_gpu


def formula(q, k, v, g):
    """Softmax attention and its gradients of [b, t, heads, d], in NumPy."""
    q, k, v, g = (np.swapaxes(np.float64(x), 1, 2) for x in (q, k, v, g))
    transposed = [np.swapaxes(x, 2, 3) for x in (k, v, q)]
    logits = q @ transposed[0]
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    y, through = weights @ v, g @ transposed[1]
    of_logits = weights * (through - np.sum(weights * through, -1, keepdims=True))
    across = np.swapaxes(of_logits, 2, 3), np.swapaxes(weights, 2, 3)
    found = y, of_logits @ k, across[0] @ q, across[1] @ g
    return [np.swapaxes(x, 1, 2) for x in found]


def draw(t, d, dtype=jnp.float32):
    rng = np.random.default_rng(t)
    return [jnp.asarray(rng.normal(size=(2, t, 2, d)) / d**0.25, dtype) for _ in range(4)]


@pytest.mark.parametrize("t", [64, 65, 96])  # 65 and 96: with tokens added, and tiles of 32
def test_value_and_gradients_are_those_of_the_formula(t):
    q, k, v, g = draw(t, 24)
    assert fused_attention.fits(q)
    y, log_sums = fused_attention.forward(q, k, v, interpret=True)
    gradients = fused_attention.pull_back(q, k, v, y, log_sums, g, interpret=True)
    for ours, wanted in zip((y, *gradients), formula(q, k, v, g), strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=1e-4, atol=2e-5)


def test_bfloat16_is_near_the_formula():
    q, k, v, g = draw(64, 16, jnp.bfloat16)
    y, log_sums = fused_attention.forward(q, k, v, interpret=True)
    assert y.dtype == jnp.bfloat16 and log_sums.dtype == jnp.float32
    gradients = fused_attention.pull_back(q, k, v, y, log_sums, g, interpret=True)
    for ours, wanted in zip((y, *gradients), formula(q, k, v, g), strict=True):
        np.testing.assert_allclose(np.float64(ours), wanted, atol=0.03 * np.abs(wanted).max())


def test_without_a_gpu_it_is_the_products():
    q, k, v, g = draw(65, 16)

    def found(function):
        y, pull_back = jax.vjp(function, q, k, v)
        return y, *pull_back(g)

    for ours, wanted in zip(found(attention_on_gpu), found(attention), strict=True):
        np.testing.assert_array_equal(ours, wanted)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((1, 63, 2, 32), "float32"), ((1, 64, 2, 8), "float32"), ((1, 64, 2, 256), "bfloat16")],
)
def test_few_tokens_and_other_head_widths_do_not_fit(shape, dtype):
    assert not fused_attention.fits(jnp.zeros(shape, dtype))
