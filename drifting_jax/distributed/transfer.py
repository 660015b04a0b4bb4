"""Moves arrays between the host and the devices of all processes."""

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from drifting_jax.distributed.meshes import batch_sharding, nearest_multiples

PyTree = Any


def global_batch(mesh: Mesh, local: PyTree) -> PyTree:
    """Joins the processes' arrays to global arrays, split over all devices on the first axis.

    Args:
        mesh: see `make_mesh`.
        local: tree of NumPy arrays `[n, …]`. Process r of w gives the rows `r·n … (r+1)·n` of the
            global batch. n is the same on all processes.

    Returns:
        Tree of `jax.Array` `[w·n, …]`. The values are the same for every number of processes.

    Raises:
        ValueError: the rows do not split evenly over the devices.
    """
    processes = jax.process_count()
    sharding = batch_sharding(mesh)

    def one(path: tuple, leaf: Any) -> jax.Array:
        leaf = np.asarray(leaf)
        rows = leaf.shape[0] * processes if leaf.ndim else 0
        if rows == 0 or rows % mesh.size:
            name = jax.tree_util.keystr(path, simple=True, separator="/") or "batch"
            raise ValueError(
                f"expected a global batch that splits over {mesh.size} devices, found {rows} rows "
                f"of {name!r} ({processes} processes); make it {nearest_multiples(rows, mesh.size)}"
            )
        return jax.make_array_from_process_local_data(sharding, leaf, (rows, *leaf.shape[1:]))

    return jax.tree_util.tree_map_with_path(one, local)


def fetch(tree: PyTree) -> PyTree:
    """Copies whole global arrays to NumPy arrays on every process.

    With several processes, all of them must call it, in the same order.
    """

    def one(leaf: Any) -> np.ndarray:
        whole = not isinstance(leaf, jax.Array) or (
            leaf.is_fully_addressable or leaf.is_fully_replicated
        )
        return np.asarray(leaf if whole else multihost_utils.process_allgather(leaf, tiled=True))

    return jax.tree.map(one, tree)


def on_host(tree: PyTree) -> PyTree:
    """In a jitted function: returns the arrays in pinned memory of their devices' host."""
    return jax.device_put(tree, jax.memory.Space.Host)


def on_devices(tree: PyTree) -> PyTree:
    """In a jitted function: returns the arrays in the devices' memory, wherever they lie."""
    return jax.device_put(tree, jax.memory.Space.Device)
