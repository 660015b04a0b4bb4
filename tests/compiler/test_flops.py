"""Operations of traced programs, counted by hand."""

import jax
import jax.numpy as jnp
import pytest

from drifting_jax.compiler.flops import product_flops

X, W = jnp.zeros((4, 8)), jnp.zeros((8, 16))
ONE = 2 * 4 * 8 * 16


def twice(x, w):
    """Two products of 4x8 and 8x16, or of their size."""
    return (x @ w) @ w.T


def scanned(x, w):
    return jax.lax.scan(lambda x, _: (twice(x, w), None), x, length=5)[0]


def branches(x, w):
    return jax.lax.cond(x[0, 0] > 0, twice, lambda x, w: x, x, w)


def convolved(x, w):
    images, kernel = jnp.zeros((2, 6, 6, 4)), jnp.zeros((3, 3, 2, 10))
    return jax.lax.conv_general_dilated(
        images, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=2,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (twice, 2 * ONE),
        (jax.jit(twice), 2 * ONE),
        (scanned, 10 * ONE),
        (branches, 2 * ONE),
        (lambda x, w: jnp.einsum("bij,bjk->bik", x.reshape(2, 2, 8), w.reshape(2, 8, 8)), ONE // 2),
        (convolved, 2 * (2 * 4 * 4 * 10) * (3 * 3 * 2)),
        (jax.grad(lambda x, w: jnp.sum(twice(x, w))), 4 * ONE),
        (jax.grad(lambda x, w: jnp.sum(jax.checkpoint(lambda x: jnp.sin(x @ w))(x))), 3 * ONE),
        (lambda x, w: x + 1, 0),
    ],
)
def test_products(function, expected):
    assert product_flops(jax.make_jaxpr(function)(X, W)) == expected
