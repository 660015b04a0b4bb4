"""Conditions that are vectors: what their networks return, and what that depends on."""

import jax
import numpy as np
import pytest

from drifting_jax.models.calls import apply, init_params
from drifting_jax.models.conditions import ContextTokens, VectorCondition


@pytest.mark.parametrize("shape", [(5,), (2, 3), (2, 1, 4)], ids=str)
def test_any_array_becomes_a_vector_of_unit_size(shape):
    arrays = jax.random.normal(jax.random.key(0), (4, *shape))
    model = VectorCondition(width=8, depth=2)
    params = init_params(model, jax.random.key(1), arrays)
    found = np.asarray(apply(model, params, arrays))
    assert found.shape == (4, 8)
    np.testing.assert_allclose(np.mean(found**2, axis=1), 1, rtol=1e-3)
    alone = apply(model, params, arrays[2:3])
    np.testing.assert_allclose(alone, found[2:3], rtol=1e-5)
    x = np.asarray(arrays).reshape(4, -1)
    for i in range(2):
        layer = jax.tree.map(np.asarray, params[f"layer_{i}"])
        x = x / (1 + np.exp(-x)) if i else x
        x = x @ layer["kernel"] + layer["bias"]
    x = x / np.sqrt(np.mean(x**2, axis=1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(found, x * np.asarray(params["norm"]["scale"]), rtol=1e-4, atol=1e-5)


def test_tokens_of_a_condition_differ_by_their_embedding():
    condition = jax.random.normal(jax.random.key(0), (3, 6))
    model = ContextTokens(count=4, width=8)
    params = init_params(model, jax.random.key(1), condition)
    found = apply(model, params, condition)
    assert found.shape == (3, 4, 8)
    params = jax.tree.map(np.asarray, params)
    of_condition = (
        np.asarray(condition) @ params["projection"]["kernel"] + params["projection"]["bias"]
    )
    wanted = of_condition[:, None] + params["embedding"][None]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
