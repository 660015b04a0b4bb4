"""Class rows [c, n, ...] as batches [c·n, ...] on the mesh and back, and sums over microbatches."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from drifting_jax.distributed import meshes

PyTree = Any


def to_float(images: jax.Array) -> jax.Array:
    """Returns uint8 pixels as float32 in [-1, 1], and latents of any float type as float32."""
    if images.dtype == jnp.uint8:
        return images.astype(jnp.float32) / 127.5 - 1
    return images.astype(jnp.float32)


def merge(x: jax.Array, sharding: NamedSharding) -> jax.Array:
    """Merges the first two axes: [c, n, ...] -> [c·n, ...].

    In the order of the merged axis rows come before samples, unless samples alone are split over
    devices.
    """
    x = jax.lax.with_sharding_constraint(x, sharding)
    if _samples_first(sharding):
        x = x.swapaxes(0, 1)
    return keep_split(x.reshape(-1, *x.shape[2:]), sharding)


def keep_split(x: jax.Array, sharding: NamedSharding) -> jax.Array:
    """Keeps an array [c·n, ...] from `merge` split over devices on its first axis.

    Without this constraint the compiler may split a convolution as its weights are, over channels,
    and then each device works on all samples.
    """
    axes = [axis for axis in sharding.spec if axis is not None]
    if len(axes) != 1:  # both axes are split: the merged axis cannot be split the same way
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(sharding.mesh, P(axes[0])))


def split(x: jax.Array, sharding: NamedSharding, c: int, n: int) -> jax.Array:
    """Returns [c, n, ...] of [c·n, ...]: the inverse of `merge`."""
    if _samples_first(sharding):
        x = x.reshape(n, c, *x.shape[1:]).swapaxes(0, 1)
    else:
        x = x.reshape(c, n, *x.shape[1:])
    return jax.lax.with_sharding_constraint(x, sharding)


def _samples_first(sharding: NamedSharding) -> bool:
    rows, samples = (*sharding.spec, None, None)[:2]
    return rows is None and samples is not None


def real_sharding(mesh: Mesh, rows: int, per_row: int) -> NamedSharding:
    """Returns `meshes.row_sharding`, or a replicated sharding if neither axis divides evenly."""
    try:
        return meshes.row_sharding(mesh, rows, per_row)
    except ValueError:
        return meshes.replicated(mesh)


def of_rows(
    function: Callable[[jax.Array], PyTree], mesh: Mesh, groups: Mapping[str, jax.Array]
) -> dict[str, PyTree]:
    """Calls a function of images [b, h, w, channels] once for groups of samples.

    Args:
      function: returns a tree of arrays [b, ...].
      mesh: the samples are split over it.
      groups: {group: images [c, n, h, w, channels]}, the same rows with an n of each group's own.

    Returns:
      {group: tree of arrays [c, n, ...]}.
    """
    images = jnp.concatenate(list(groups.values()), axis=1)
    c, n = images.shape[:2]
    sharding = real_sharding(mesh, c, n)
    found = jax.tree.map(lambda x: split(x, sharding, c, n), function(merge(images, sharding)))
    ends = np.cumsum([x.shape[1] for x in groups.values()])
    return {
        group: jax.tree.map(lambda x, end=end, n=images.shape[1]: x[:, end - n : end], found)
        for (group, images), end in zip(groups.items(), ends, strict=True)
    }


def mean_over_microbatches(function: Callable, batch, parts: int):
    """Returns the mean of a function over equal parts of a batch, computed one after another.

    Part j holds the rows j, j + parts, …, so that each row stays on its device.
    """
    if parts == 1:
        return function(batch)
    split = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)
    return jax.tree.map(lambda x: x / parts, sum_over_microbatches(function, split))


def sum_over_microbatches(function: Callable, microbatches):
    """Returns the sum of a function over the first axis of a tree, one entry after another."""
    return sum_and_stack(lambda microbatch: (function(microbatch), None), microbatches)[0]


def sum_and_stack(function: Callable, microbatches):
    """Returns the sum of a function's first result over the microbatches, and all of its second."""
    shapes, _ = jax.eval_shape(function, jax.tree.map(lambda x: x[0], microbatches))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def add(total, microbatch):
        found, kept = function(microbatch)
        return jax.tree.map(jnp.add, total, found), kept

    return jax.lax.scan(add, zeros, microbatches)
