"""The items of one checkpoint: checks what they hold, and reads them from the disk."""

import errno
import re
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from drifting_jax.distributed.agreement import any_process, on_all_processes
from drifting_jax.errors import UserError, first_line
from drifting_jax.workdir.checksums import leaf_path, named_checksums, named_leaves

Tree = Any

CHECKSUMS = "checksums"  # the item that holds the checksums of all others
# Errors that say nothing about the files: mistakes, and running out of memory.
NOT_DAMAGE = (UserError, MemoryError, jax.errors.JaxRuntimeError)
# Errors of a disk or a network that may answer the next time.
_TRANSIENT = (errno.EIO, errno.EAGAIN, errno.EINTR, errno.ESTALE, errno.EREMOTEIO, errno.ETIMEDOUT,
            errno.ENOTCONN, errno.ECONNRESET, errno.ECONNABORTED, errno.EHOSTDOWN,
            errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.EMFILE,
            errno.ENFILE)  # fmt: skip


def read_step(
    directory: Path,
    templates: Mapping[str, Tree],
    *,
    padded: Collection[str] = (),
    retry_seconds: Sequence[float] = (),
) -> dict[str, Tree]:
    """Reads the items of a step on all processes, or raises on all.

    Args:
      directory: The step's directory.
      templates, padded: As in `Checkpoints.restore_latest`, after `arrays_only`.
      retry_seconds: Pauses before each new try, after a transient error on any process.

    Raises:
      UserError: An array differs from its template in name, shape or dtype.
      Exception: Of any type, if a file is damaged.
    """
    for pause in (*retry_seconds, None):
        try:
            items = on_all_processes(_read, directory, templates, padded)
            on_all_processes(_verify, items)
            return {name: items[name] for name in templates}
        except Exception as error:
            if not any_process(is_transient(error)) or pause is None:
                raise
            logging.warning(f"{directory}: {first_line(error)}; reading again in {pause:g} s")
        time.sleep(pause)
    raise AssertionError


def is_transient(error: Exception) -> bool:
    """Returns whether an error of reading says that the disk failed, not that a file is damaged."""
    if isinstance(error, NOT_DAMAGE):
        return False
    # Errors of TensorStore and of other processes have the number in their words alone.
    told = re.search(r"(?:Errno|OS error) (\d+)", str(error))
    return getattr(error, "errno", None) in _TRANSIENT or bool(told and int(told[1]) in _TRANSIENT)


def _read(
    directory: Path, templates: Mapping[str, Tree], padded: Collection[str]
) -> dict[str, Tree]:
    # Reads with the handlers, not with the manager: the manager's restore ends with a barrier, at
    # which the others would wait for a process that could not read its part.
    folder = epath.Path(directory)
    handler = ocp.StandardCheckpointHandler()
    items = {CHECKSUMS: ocp.JsonCheckpointHandler().restore(folder / CHECKSUMS)}
    for name, template in templates.items():
        _check_fits(folder / name, template, padded=name in padded)
        arguments = ocp.args.StandardRestore(template, strict=name not in padded)
        items[name] = handler.restore(folder / name, args=arguments)
    return items


def _check_fits(item: epath.Path, template: Tree, *, padded: bool) -> None:
    """Compares names, shapes and dtypes: Orbax would cast to another dtype silently."""
    handler = ocp.StandardCheckpointHandler()
    saved = named_leaves(handler.metadata(item).tree)
    wanted = named_leaves(template)
    where = f"{item.name!r} of the checkpoint {item.parent}"
    advice = "use the config it was saved with, or another --workdir"
    for path in sorted(saved.keys() ^ wanted.keys()):
        here, there = ("has", "lacks") if path in saved else ("lacks", "has")
        raise UserError(f"{where} {here} {path}, which this run {there}; {advice}")
    for path, leaf in wanted.items():
        stored, first = saved[path], int(padded)
        same = tuple(stored.shape)[first:] == leaf.shape[first:]
        if not same or len(stored.shape) != leaf.ndim or stored.dtype != leaf.dtype:
            raise UserError(
                f"{where} holds {path} as {stored.dtype}{list(stored.shape)}; "
                f"this run needs {leaf.dtype}{list(leaf.shape)}; {advice}"
            )


def _verify(restored: Mapping[str, Tree]) -> None:
    """Compares the checksums of restored items with those saved beside them."""
    for name, tree in restored.items():
        if name == CHECKSUMS:
            continue
        for path, found in named_checksums(tree).items():
            if found != restored[CHECKSUMS][name][path]:
                raise OSError(f"the bits of {name}/{path} are not those that were saved")


def arrays_only(name: str, tree: Tree) -> Tree:
    """Returns an item's tree with its numbers as NumPy arrays.

    Raises:
      ValueError: The tree holds no array, a PRNG key, or a template without a sharding, or the
        item's name is reserved.
    """
    if name == CHECKSUMS:
        raise ValueError(f"an item cannot be called {name!r}: the name is taken")
    if not jax.tree.leaves(tree):
        raise ValueError(f"the item {name!r} holds no array: leave it out")

    def array(path, leaf):
        if not isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
            return np.asarray(leaf)
        where = f"{name}/{leaf_path(path)}"
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            raise ValueError(f"{where} is a PRNG key: derive it from the seed and the step instead")
        if leaf.sharding is None:
            raise ValueError(f"the template of {where} has no sharding: say where it shall lie")
        return leaf

    return jax.tree_util.tree_map_with_path(array, tree)
