"""Checksums of arrays by their path in a tree.

Zeros add nothing: a tree that is padded with rows of zeros for another mesh keeps its checksums.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Tree = Any


def named_checksums(tree: Tree) -> dict[str, int]:
    """Returns the checksum of each array by its path; they are the same on every mesh."""
    leaves = named_leaves(tree)
    on_device = {path: leaf for path, leaf in leaves.items() if isinstance(leaf, jax.Array)}
    sums = jax.device_get(_device_checksums(on_device))
    return {
        path: int(sums[path] if path in sums else _host_checksum(leaf))
        for path, leaf in leaves.items()
    }


@jax.jit
def _device_checksums(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Sums the bits of each array as unsigned integers modulo 2³²: {path: [] uint32}."""

    def checksum(x):
        if x.dtype == jnp.bool_:
            x = x.astype(jnp.uint8)
        bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * min(x.dtype.itemsize, 4)}"))
        return jnp.sum(bits.astype(jnp.uint32), dtype=jnp.uint32)

    return {path: checksum(x) for path, x in arrays.items()}


def _host_checksum(x: np.ndarray) -> np.uint32:
    bits = np.ascontiguousarray(x).reshape(-1).view(f"uint{8 * min(x.dtype.itemsize, 4)}")
    return np.sum(bits, dtype=np.uint32)


def named_leaves(tree: Tree) -> dict[str, Any]:
    """Returns the leaves of a tree by their paths."""
    return {leaf_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def leaf_path(path: tuple) -> str:
    """Returns a path of `jax.tree_util` in words, such as "params/block_0/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
