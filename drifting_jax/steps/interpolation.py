"""Samples between two seeds: `sampling.between` their inputs, one evaluation each."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from drifting_jax.models import generators
from drifting_jax.models.vae import VAE
from drifting_jax.steps.sampling import Samples, between, images_of, to_uint8
from drifting_jax.surroundings import settled_jax


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

    The way is that of `sampling.between`.

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
        first, last = (generators.draw_inputs(key, model) for key in keys_of_sample)
        (first, last) = jax.tree.map(lambda x: x[None], (first, last))
        return jax.tree.map(lambda x: x[0], between(first, last, fraction))

    noise, styles = jax.vmap(one)(labels, indices, fractions)
    scales = jnp.broadcast_to(jnp.float32(cfg_scale), labels.shape)
    made = images_of(model, params, noise, labels, styles, scales, vae=vae)
    return Samples(to_uint8(made), jnp.isfinite(made).all(axis=(1, 2, 3)))
