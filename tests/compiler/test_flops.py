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


def strided(images):
    """Two outputs in each direction, from all of three entries each."""
    kernel = jnp.ones((3, 3, 4, 10))
    return jax.lax.conv_general_dilated(
        images, kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def padded(x, w):
    images, kernel = jnp.zeros((2, 6, 6, 4)), jnp.zeros((3, 3, 4, 10))
    return jax.lax.conv_general_dilated(
        images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


IMAGES = jnp.zeros((2, 6, 6, 4))


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (twice, 2 * ONE),
        (jax.jit(twice), 2 * ONE),
        (scanned, 10 * ONE),
        (branches, 2 * ONE),
        (lambda x, w: jnp.einsum("bij,bjk->bik", x.reshape(2, 2, 8), w.reshape(2, 8, 8)), ONE // 2),
        (convolved, 2 * (2 * 4 * 4 * 10) * (3 * 3 * 2)),
        (padded, 2 * (2 * 10 * 4) * (6 * 3 - 2) ** 2),
        (lambda x, w: strided(IMAGES), 2 * (2 * 10 * 4) * (2 * 3) ** 2),
        (
            lambda x, w: jax.vjp(strided, IMAGES)[1](jnp.ones((2, 2, 2, 10))),
            2 * 2 * (2 * 10 * 4) * (2 * 3) ** 2,  # forward, and the same pairs back
        ),
        (jax.grad(lambda x, w: jnp.sum(twice(x, w))), 4 * ONE),
        (jax.grad(lambda x, w: jnp.sum(jax.checkpoint(lambda x: jnp.sin(x @ w))(x))), 3 * ONE),
        (lambda x, w: x + 1, 0),
    ],
)
def test_products(function, expected):
    assert product_flops(jax.make_jaxpr(function)(X, W)) == expected
