"""Samples between two seeds: their ends are the sampler's."""

import jax
import jax.numpy as jnp
import numpy as np
import tiny_generator

from drifting_jax.steps.interpolation import interpolated


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
