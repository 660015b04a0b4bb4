"""Batches on the mesh: class rows [c, n, ...] as [c·n, ...] and back, and batches in pieces."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from drifting_jax.distributed import meshes
from drifting_jax.method.encoders import FeatureFunction


def to_float(images: jax.Array) -> jax.Array:
    """uint8 pixels -> [-1, 1] float32; latents of any float type -> float32."""
    if images.dtype == jnp.uint8:
        return images.astype(jnp.float32) / 127.5 - 1
    return images.astype(jnp.float32)


def merge(x: jax.Array, sharding: NamedSharding) -> jax.Array:
    """[c, n, ...] -> [c·n, ...], whichever of the two axes is split over devices going first."""
    x = jax.lax.with_sharding_constraint(x, sharding)
    if _samples_first(sharding):
        x = x.swapaxes(0, 1)
    return keep_split(x.reshape(-1, *x.shape[2:]), sharding)


def keep_split(x: jax.Array, sharding: NamedSharding) -> jax.Array:
    """[c·n, ...] of `merge`, held to its split.

    Left to itself the compiler splits a convolution as its weights are split, over channels, and
    then each device works on all samples.
    """
    axes = [axis for axis in sharding.spec if axis is not None]
    if len(axes) != 1:  # rows and samples split apart: no axis of the merged array is
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(sharding.mesh, P(axes[0])))


def split(x: jax.Array, sharding: NamedSharding, c: int, n: int) -> jax.Array:
    """The inverse of `merge`."""
    if _samples_first(sharding):
        x = x.reshape(n, c, *x.shape[1:]).swapaxes(0, 1)
    else:
        x = x.reshape(c, n, *x.shape[1:])
    return jax.lax.with_sharding_constraint(x, sharding)


def _samples_first(sharding: NamedSharding) -> bool:
    rows, samples = (*sharding.spec, None, None)[:2]
    return rows is None and samples is not None


def real_sharding(mesh: Mesh, rows: int, per_row: int) -> NamedSharding:
    """Of real samples: as `meshes.row_sharding`, replicated where they do not divide."""
    try:
        return meshes.row_sharding(mesh, rows, per_row)
    except ValueError:
        return meshes.replicated(mesh)


def features_of_rows(
    feature_function: FeatureFunction, variables, images: jax.Array, sharding: NamedSharding
) -> dict[str, jax.Array]:
    """Features {name: [c, n, t, d]} of images [c, n, h, w, channels]."""
    c, n = images.shape[:2]
    found = feature_function(variables, merge(images, sharding))
    return {name: split(x, sharding, c, n) for name, x in found.items()}


def mean_over_parts(function: Callable, batch, parts: int):
    """The mean of a function of a batch over equal parts of it, one after another.

    Part j holds the rows j, j + parts, …: so each device keeps the rows that it has.
    """
    if parts == 1:
        return function(batch)
    split = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)
    return jax.tree.map(lambda x: x / parts, sum_over_pieces(function, split))


def sum_over_pieces(function: Callable, pieces):
    """The sum of a function's results over the first axis of a tree, one after another."""
    shapes = jax.eval_shape(function, jax.tree.map(lambda x: x[0], pieces))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def add(total, piece):
        return jax.tree.map(jnp.add, total, function(piece)), None

    return jax.lax.scan(add, zeros, pieces)[0]
