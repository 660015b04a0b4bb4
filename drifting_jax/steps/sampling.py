"""1-NFE sampling: one evaluation of the generator, in a jitted function apart from training.

Sample i of a class depends on (seed, class, i, α) alone, never on the batch size or the devices.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from drifting_jax.distributed import meshes, transfer
from drifting_jax.models import generators
from drifting_jax.models.calls import apply, apply_variables
from drifting_jax.models.vae import VAE
from drifting_jax.surroundings import settled_jax

Array = Any  # of NumPy or JAX


class Samples(NamedTuple):
    """images: [b, h, w, c] uint8; finite: [b] bool, whether every value of a sample was finite."""

    images: Array
    finite: Array


Sampler = Callable[..., Samples]


def to_uint8(images: jax.Array) -> jax.Array:
    """Returns uint8 of floats in [-1, 1], rounded half to even; values outside are clipped."""
    return jnp.round(jnp.clip((images + 1) * 127.5, 0, 255)).astype(jnp.uint8)


def make_sampler(model: nn.Module, mesh: Mesh, *, vae: VAE | None = None) -> Sampler:
    """Returns the jitted 1-NFE function.

    Args:
      model: the generator, of pixels in [-1, 1] or of scaled latents.
      mesh: devices that share a batch.
      vae: decodes latents to pixels; None for a generator of pixels.

    Returns:
      sampler(params, key, labels [b] int32, indices [b] int32, cfg_scale [], position=None) ->
      `Samples`. `key` comes from the seed, `indices` are the numbers of the samples within their
      classes, and b is a multiple of the mesh's size. With a `position` [] float32 in (0, 1), the
      inputs are `between` those of each sample and of the next one of its class. With a `vae`,
      params is {"generator": params, "vae": variables}.
    """
    rows = meshes.batch_sharding(mesh)

    @settled_jax()
    @jax.jit
    def sampler(params, key, labels, indices, cfg_scale, position=None):
        key = _of_threefry(key)

        def one(label, index):
            of_sample = jax.random.fold_in(jax.random.fold_in(key, label), index)
            return generators.draw_inputs(of_sample, model)

        inputs = jax.vmap(one)(labels, indices)
        if position is not None:
            inputs = between(inputs, jax.vmap(one)(labels, indices + 1), position)
        noise, styles = jax.lax.with_sharding_constraint(inputs, rows)
        scales = jnp.broadcast_to(jnp.float32(cfg_scale), labels.shape)
        made = images_of(model, params, noise, labels, styles, scales, vae=vae)
        return Samples(to_uint8(made), jnp.isfinite(made).all(axis=(1, 2, 3)))

    return sampler


def between(
    first: tuple[jax.Array, jax.Array], second: tuple[jax.Array, jax.Array], position: Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the inputs at a position t on the way from one sample's inputs to another's.

    The noise goes along a circle, cos(πt/2)·a + sin(πt/2)·b: where a and b are independent and
    standard normal so is every point on the way, as the generator was trained, while a straight
    line would lead through noise that is too small. Style indices are discrete: each is the first
    sample's and then the second's. One book after another changes, book j of k at t = (j + ½)/k,
    because a change of all at once would be one large jump.

    Args:
      first: noise [b, ...] and styles [b, k] of samples, as `generators.draw_inputs` gives them.
      second: the same of other samples.
      position: t [], in [0, 1].
    """
    (noise, styles), (next_noise, next_styles) = first, second
    angle = jnp.pi / 2 * jnp.float32(position)
    books = styles.shape[-1]
    changed = (jnp.arange(books) + 0.5) / max(books, 1) <= position
    mixed = jnp.cos(angle) * noise + jnp.sin(angle) * next_noise
    mixed = jnp.where(position == 0, noise, jnp.where(position == 1, next_noise, mixed))
    return mixed, jnp.where(changed[None], next_styles, styles)


def images_of(
    model: nn.Module, params: Any, *inputs: jax.Array, vae: VAE | None = None
) -> jax.Array:
    """Returns images [b, h, w, c] float32, nominally in [-1, 1].

    Args:
      model: the generator.
      params: its parameters; with a `vae` as in `make_sampler`.
      inputs: noise, labels, styles and guidance scales, as `models.generators` describes them.
      vae: decodes latents to pixels; None for a generator of pixels.
    """
    if vae is None:
        return apply(model, params, *inputs)
    latents = apply(model, params["generator"], *inputs)
    return apply_variables(vae, params["vae"], latents, method=VAE.decode_scaled)


def _of_threefry(key: jax.Array) -> jax.Array:
    """The same key, of one seed, in threefry2x32.

    Under `vmap`, keys of JAX's other implementations draw from the first key of the batch alone.
    Those of rbg hold the two words of threefry twice.
    """
    if str(jax.random.key_impl(key)) == "threefry2x32":
        return key
    return jax.random.wrap_key_data(jax.random.key_data(key)[..., :2], impl="threefry2x32")


def class_major(classes: Sequence[int], per_class: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns labels [n] and indices within each class [n], both int32, sorted by class."""
    labels = np.repeat(np.asarray(classes, np.int32), per_class)
    return labels, np.tile(np.arange(per_class, dtype=np.int32), len(classes))


def sample_in_batches(
    sampler: Sampler,
    params,
    key: jax.Array,
    labels: np.ndarray,
    indices: np.ndarray,
    *,
    cfg_scale: float,
    batch_size: int,
    mesh: Mesh,
) -> Iterator[Samples]:
    """Yields samples of all labels, in order, on the devices.

    The batch size is rounded up to a multiple of the mesh's size; for fewer labels it is their
    number. The last batch ends in padding where there are fewer labels left.
    """
    batch_size = -(-max(min(batch_size, len(labels)), 1) // mesh.size) * mesh.size
    for start in range(0, len(labels), batch_size):
        part = slice(start, start + batch_size)
        padding = (0, batch_size - len(labels[part]))
        yield sampler(
            params,
            key,
            np.pad(labels[part], padding),
            np.pad(indices[part], padding),
            np.float32(cfg_scale),
        )


def concatenated(batches: Iterable[Samples], count: int) -> Samples:
    """Returns the first `count` samples of some batches, on the host, without the padding."""
    parts = [transfer.fetch(batch) for batch in batches]
    return Samples(*(np.concatenate(x)[:count] for x in zip(*parts, strict=True)))


def sample_all(
    sampler: Sampler, params, key: jax.Array, labels: np.ndarray, *args, **kwargs
) -> Samples:
    """Returns the samples of all labels on the host; arguments as in `sample_in_batches`."""
    batches = sample_in_batches(sampler, params, key, labels, *args, **kwargs)
    return concatenated(batches, len(labels))


def sample_rows(
    sample: Callable[[np.ndarray, np.ndarray], Array],
    conditions: np.ndarray,
    indices: np.ndarray,
    *,
    batch_size: int,
) -> np.ndarray:
    """Returns samples [n, ...] of conditions, `batch_size` at once, the last ones with padding.

    So every call has one shape, and a row's bits do not depend on the number of the others.

    Args:
      sample: (conditions [batch_size, ...], indices [batch_size] uint32) -> samples.
      conditions: [n, ...].
      indices: [n] integers.
      batch_size: rows of a call.
    """
    parts = []
    for start in range(0, max(len(conditions), 1), batch_size):
        rows = conditions[start : start + batch_size]
        missing = batch_size - len(rows)
        padded = np.pad(rows, [(0, missing)] + [(0, 0)] * (rows.ndim - 1))
        numbers = np.pad(indices[start : start + batch_size].astype(np.uint32), (0, missing))
        parts.append(np.asarray(sample(padded, numbers))[: len(rows)])
    return np.concatenate(parts)
