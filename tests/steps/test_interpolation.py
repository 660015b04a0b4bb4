"""Samples between two seeds: their ends are the sampler's, and their noise stays Gaussian."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_generator

from drifting_jax.steps.interpolation import interpolated, slerp


def in_float64(first, second, t):
    """Slerp as Shoemake writes it."""
    angle = np.arccos(np.sum(first * second) / np.linalg.norm(first) / np.linalg.norm(second))
    return (np.sin((1 - t) * angle) * first + np.sin(t * angle) * second) / np.sin(angle)


@pytest.mark.parametrize("t", [0.0, 0.25, 0.9, 1.0])
def test_slerp_is_its_formula_and_exact_at_its_ends(t):
    first, second = np.random.default_rng(0).normal(size=(2, 8, 8, 3))
    found = jax.jit(slerp)(jnp.float32(first), jnp.float32(second), jnp.float32(t))
    np.testing.assert_allclose(found, in_float64(first, second, t), rtol=1e-5, atol=1e-5)
    if t in (0.0, 1.0):
        np.testing.assert_array_equal(found, np.float32(second if t else first))


def test_slerp_keeps_the_length_of_noise_which_a_straight_line_does_not():
    first, second = np.random.default_rng(1).normal(size=(2, 4096)).astype(np.float32)
    half = np.asarray(slerp(first, second, jnp.float32(0.5)))
    assert abs(half.std() - 1) < 0.03
    assert ((first + second) / 2).std() < 0.75


def test_slerp_of_the_same_or_opposite_noise_is_a_straight_line():
    noise = np.random.default_rng(2).normal(size=50).astype(np.float32)
    np.testing.assert_allclose(slerp(noise, noise, jnp.float32(0.3)), noise, rtol=1e-6)
    np.testing.assert_allclose(slerp(noise, -noise, jnp.float32(0.3)), 0.4 * noise, rtol=1e-4)
    np.testing.assert_array_equal(slerp(0 * noise, 0 * noise, jnp.float32(0.3)), 0)


def test_the_ends_are_the_samples_of_the_two_seeds():
    generator = tiny_generator.tiny_generator()
    labels, indices = np.int32([3, 3, 3, 1]), np.int32([2, 2, 2, 0])
    keys = jnp.stack([of_seed(seed) for seed in (5, 2**32 - 1)])
    found = interpolated(
        generator.params,
        keys,
        labels,
        indices,
        np.float32([0, 0.5, 1, 1]),
        np.float32(1.5),
        model=generator.model,
    )
    assert found.images.dtype == np.uint8 and found.finite.all()
    first, last = (
        generator.sample(labels, indices, seed=seed, cfg_scale=1.5) for seed in (5, 2**32 - 1)
    )
    near = {"atol": 1, "rtol": 0}  # another program may round the last bit otherwise
    images = np.asarray(found.images, int)
    np.testing.assert_allclose(images[0], first[0].astype(int), **near)
    np.testing.assert_allclose(images[2:], last[2:].astype(int), **near)
    assert np.abs(images[1] - images[0]).max() > 1 and np.abs(images[1] - images[2]).max() > 1


def of_seed(seed):
    return jax.random.fold_in(jax.random.key(seed), 8)  # the stream "samples"
