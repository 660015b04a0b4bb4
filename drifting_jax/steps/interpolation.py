"""Samples between two seeds: spherical interpolation of their noise, one evaluation each."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from drifting_jax.models import generators
from drifting_jax.models.vae import VAE
from drifting_jax.steps.sampling import Samples, images_of, to_uint8
from drifting_jax.surroundings import settled_jax

_LEAST_SINE = 1e-4  # below it the two directions are the same in float32


def slerp(first: jax.Array, second: jax.Array, fraction: jax.Array) -> jax.Array:
    """Returns spherical interpolation of two arrays of one shape, as directions from 0.

    Unlike a straight line, it keeps the length that Gaussian noise of many dimensions has
    (Shoemake 1985; White 2016, arXiv 1609.04468). It is a straight line where both directions are
    the same or opposite.

    Args:
      first, second: [...] float32.
      fraction: [] in [0, 1]; 0 gives `first` and 1 gives `second`, exactly.
    """
    lengths = jnp.linalg.norm(first) * jnp.linalg.norm(second)
    cosine = jnp.clip(jnp.sum(first * second) / jnp.maximum(lengths, 1e-12), -1, 1)
    angle = jnp.arccos(cosine)
    sine = jnp.sin(angle)
    is_line = sine < _LEAST_SINE
    sine = jnp.where(is_line, 1.0, sine)
    before = jnp.where(is_line, 1 - fraction, jnp.sin((1 - fraction) * angle) / sine)
    after = jnp.where(is_line, fraction, jnp.sin(fraction * angle) / sine)
    return before * first + after * second


@settled_jax()
@functools.partial(jax.jit, static_argnames=("model", "vae"))
def interpolated(
    params: Any,
    keys: jax.Array,
    labels: jax.Array,
    indices: jax.Array,
    fractions: jax.Array,
    cfg_scale: jax.Array,
    *,
    model: nn.Module,
    vae: VAE | None = None,
) -> Samples:
    """Returns samples on the way from one seed to another, each by one evaluation.

    The noise turns from that of the first seed to that of the second. Style indices cannot be
    mixed: a sample at fraction t of a model with k style books has the first round(t·k) indices of
    the second seed.

    Args:
      params: as `make_sampler` takes them.
      keys: [2] of the two seeds, from `samples_key`.
      labels: [b] int32.
      indices: [b] int32, the numbers of the samples within their classes. At fractions 0 and 1 a
        sample is the one that the sampler makes of this number.
      fractions: [b] float32 in [0, 1].
      cfg_scale: [] guidance scale α.
      model: the generator.
      vae: decodes latents to pixels; None for a generator of pixels.
    """

    def one(label, index, fraction):
        keys_of_sample = (jax.random.fold_in(jax.random.fold_in(key, label), index) for key in keys)
        (noise, styles), (other_noise, other_styles) = (
            generators.draw_inputs(key, model) for key in keys_of_sample
        )
        changed = jnp.arange(len(styles)) < jnp.round(fraction * len(styles))
        return slerp(noise, other_noise, fraction), jnp.where(changed, other_styles, styles)

    noise, styles = jax.vmap(one)(labels, indices, fractions)
    scales = jnp.broadcast_to(jnp.float32(cfg_scale), labels.shape)
    made = images_of(model, params, noise, labels, styles, scales, vae=vae)
    return Samples(to_uint8(made), jnp.isfinite(made).all(axis=(1, 2, 3)))
