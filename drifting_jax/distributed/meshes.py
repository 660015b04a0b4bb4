"""The mesh of devices, and the rules that split arrays over it.

A mesh has two axes, `data` and `fsdp`. Batches are split over both, parameters over `fsdp` by
rules. One device is a mesh of one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

BATCH_AXES = ("data", "fsdp")
LARGE = 2**20  # elements of an array that should be sharded

PyTree = Any
Rules = Sequence[tuple[str, Sequence[str | Sequence[str] | None]]]


def make_mesh(
    data: int = -1, fsdp: int = 1, *, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """Makes a mesh with the axes `("data", "fsdp")`, both of `AxisType.Auto`.

    Devices stand in the order of their processes, so that each process holds one contiguous part
    of every batch. A single process may use its first devices only; several processes use all of
    theirs.

    Args:
        data: size of the axis over which batches alone are split; -1 for all that `fsdp` leaves.
        fsdp: size of the axis over which parameters and batches are split; -1 as above.
        devices: devices to use instead of `jax.devices()`, such as those to compile for.

    Raises:
        ValueError: the sizes do not fit the devices.
    """
    devices = jax.devices() if devices is None else devices
    devices = sorted(devices, key=lambda device: (device.process_index, device.id))
    n = len(devices)
    sizes = {"data": data, "fsdp": fsdp}
    fits = f"with {n} devices, data x fsdp may be " + ", ".join(
        f"{n // k}x{k}" for k in range(1, n + 1) if n % k == 0
    )
    if any(size < 1 and size != -1 for size in sizes.values()) or data == fsdp == -1:
        raise ValueError(
            f"expected mesh sizes of at least 1, one of them -1 for the rest, found data={data} "
            f"fsdp={fsdp}; {fits}"
        )
    known = math.prod(size for size in sizes.values() if size != -1)
    if -1 in sizes.values() and n % known == 0:
        sizes = {name: n // known if size == -1 else size for name, size in sizes.items()}
    shape = tuple(sizes.values())
    size = math.prod(shape)
    if size < 1 or size > n or (jax.process_count() > 1 and size != n):
        raise ValueError(
            f"expected a mesh that fits the devices, found data={data} fsdp={fsdp}; {fits}"
        )
    return Mesh(
        np.array(devices[:size]).reshape(shape), BATCH_AXES, axis_types=(AxisType.Auto,) * 2
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding in which every device holds the whole array."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that splits the first axis over all devices."""
    return NamedSharding(mesh, P(BATCH_AXES))


def row_sharding(mesh: Mesh, rows: int, per_row: int) -> NamedSharding:
    """Returns a sharding of `[c, g, …]` arrays over all devices: the first of these that divides.

    1. class rows over both mesh axes,
    2. rows over `data` and the samples of a row over `fsdp`,
    3. samples over both mesh axes.

    Args:
        mesh: see `make_mesh`.
        rows: class rows `c`.
        per_row: samples of each row `g`.

    Raises:
        ValueError: none of them divides evenly.
    """
    data, fsdp = (mesh.shape[name] for name in BATCH_AXES)
    n = data * fsdp
    if rows % n == 0:
        return NamedSharding(mesh, P(BATCH_AXES))
    if rows % data == 0 and per_row % fsdp == 0:
        return NamedSharding(mesh, P(*BATCH_AXES))
    if per_row % n == 0:
        return NamedSharding(mesh, P(None, BATCH_AXES))
    by = nearest_multiples
    raise ValueError(
        f"expected class rows and samples per row that split over a mesh of data={data} x "
        f"fsdp={fsdp}, found {rows} rows of {per_row}; make the rows {by(rows, n)}, or the samples "
        f"per row {by(per_row, n)}, or the rows {by(rows, data)} and the samples per row "
        f"{by(per_row, fsdp)}{_other_mesh(rows, per_row, n)}"
    )


def _other_mesh(rows: int, per_row: int, n: int) -> str:
    """Returns advice on a mesh of n devices over which rows and samples split; "" if none does.

    It is the mesh that splits rows most: devices that share a row each hold all its features.
    """
    for data in range(n, 0, -1):
        if n % data == 0 and rows % data == 0 and per_row % (n // data) == 0:
            return f"; or make the mesh data={data} x fsdp={n // data}"
    return ""


def nearest_multiples(value: int, divisor: int) -> str:
    """Returns the multiples of `divisor` next to `value` in words, such as "8 or 16"."""
    below, above = value // divisor * divisor, -(-value // divisor) * divisor
    return " or ".join(str(fit) for fit in sorted({below, above}) if fit > 0)


def sharding_for_tree(shapes: PyTree, mesh: Mesh, rules: Rules) -> PyTree:
    """Returns a sharding for each leaf, by the first rule whose pattern matches its path.

    A mesh axis that does not divide its dimension evenly is dropped; in a large leaf (`LARGE`
    elements or more) it moves to the largest free dimension that it divides. A leaf that no rule
    matches is replicated. Large leaves that end up unsharded on a mesh with `fsdp > 1` are logged.

    Args:
        shapes: tree of arrays or `jax.ShapeDtypeStruct`.
        mesh: see `make_mesh`.
        rules: ordered (pattern, spec) pairs. The pattern is a regular expression, searched in a
            path such as `params/block_0/kernel`. The spec has, for each dimension from the first, a
            mesh axis, several axes, or None.

    Returns:
        The same tree of `NamedSharding`.

    Raises:
        ValueError: a pattern is not a regular expression, or a spec names an unknown mesh axis or
            one axis twice.
    """
    compiled = [_compile(pattern, spec, mesh) for pattern, spec in rules]

    def one(path: tuple, leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        spec = next((spec for pattern, spec in compiled if pattern.search(name)), ())
        kept = [
            axes if dimension % _size(mesh, axes) == 0 else ()
            for dimension, axes in zip(leaf.shape, spec, strict=False)
        ]
        if math.prod(leaf.shape) >= LARGE:
            kept = _moved(leaf.shape, spec, kept, mesh)
        parts = math.prod(_size(mesh, axes) for axes in kept)
        if parts == 1 and mesh.shape["fsdp"] > 1 and math.prod(leaf.shape) >= LARGE:
            logging.warning("not sharded: %s %s (spec %s)", name, leaf.shape, spec or "of no rule")
        return NamedSharding(mesh, P(*(axes or None for axes in kept)))

    return jax.tree_util.tree_map_with_path(one, shapes)


def large_parameters(shapes: PyTree, shardings: PyTree) -> list[str]:
    """Returns a line for each large leaf: path, dtype and shape, spec, MiB that a device holds.

    Args:
        shapes: tree of arrays or `jax.ShapeDtypeStruct`. Leaves of at least `LARGE` elements are
            listed.
        shardings: the same tree of shardings, such as `sharding_for_tree` returns.
    """
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    rows = []
    for (path, leaf), sharding in zip(leaves, jax.tree.leaves(shardings), strict=True):
        if math.prod(leaf.shape) < LARGE:
            continue
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        dtype = np.dtype(leaf.dtype)
        size = math.prod(sharding.shard_shape(leaf.shape)) * dtype.itemsize
        kind = f"{dtype}[{', '.join(map(str, leaf.shape))}]"
        rows.append((name, kind, str(sharding.spec), f"{size / 2**20:.1f} MiB per device"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _moved(
    shape: Sequence[int],
    spec: Sequence[tuple[str, ...]],
    kept: Sequence[tuple[str, ...]],
    mesh: Mesh,
) -> list[tuple[str, ...]]:
    """Returns `kept` with the axes dropped from `spec` at other dimensions that they divide."""
    kept = [*kept, *[()] * (len(shape) - len(kept))]
    for axes in (axes for axes in spec if axes and axes not in kept):
        free = [i for i, size in enumerate(shape) if not kept[i] and size % _size(mesh, axes) == 0]
        if free:
            kept[max(free, key=lambda i: shape[i])] = axes
    return kept


def _compile(
    pattern: str, spec: Sequence[str | Sequence[str] | None], mesh: Mesh
) -> tuple[re.Pattern, tuple[tuple[str, ...], ...]]:
    """Returns a rule with its pattern compiled and each entry of its spec as a tuple of axes."""
    entries = tuple((entry,) if isinstance(entry, str) else tuple(entry or ()) for entry in spec)
    names = [name for entry in entries for name in entry]
    if not set(names) <= set(mesh.axis_names) or len(names) != len(set(names)):
        raise ValueError(
            f"expected mesh axes of {mesh.axis_names} in a sharding rule, each once at most, "
            f"found {tuple(spec)} for {pattern!r}"
        )
    try:
        return re.compile(pattern), entries
    except re.error as error:
        raise ValueError(
            f"expected a regular expression in a sharding rule, found {pattern!r}: {error}"
        ) from error


def _size(mesh: Mesh, axes: Sequence[str]) -> int:
    return math.prod(mesh.shape[name] for name in axes)


def init_sharded(
    init_fn: Callable[..., PyTree], *args: Any, shardings: Callable[[PyTree], PyTree]
) -> PyTree:
    """Runs `init_fn(*args)` so that each device makes its own part; no full copy ever exists.

    Args:
        init_fn: a function that can be jitted.
        *args: its arguments.
        shardings: maps the tree of shapes of its result to a tree of shardings, such as
            `functools.partial(sharding_for_tree, mesh=mesh, rules=rules)`.
    """
    shapes = jax.eval_shape(init_fn, *args)
    return jax.jit(init_fn, out_shardings=shardings(shapes))(*args)


def bytes_per_device(tree: PyTree) -> int:
    """Returns the bytes that one device holds of a tree of shapes with shardings.

    What lies in the host's memory does not count.
    """
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
        if leaf.sharding.memory_kind != "pinned_host"
    )


def template(
    init_fn: Callable[..., PyTree], *args: Any, shardings: Callable[[PyTree], PyTree]
) -> PyTree:
    """Returns the result of `init_sharded` as a tree of `jax.ShapeDtypeStruct` with shardings."""
    shapes = jax.eval_shape(init_fn, *args)
    return jax.tree.map(
        lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding),
        shapes,
        shardings(shapes),
    )
