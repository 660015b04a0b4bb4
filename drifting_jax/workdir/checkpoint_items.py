"""The items of one checkpoint: what they may hold, and reading them with every check."""

import errno
import re
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from drifting_jax.distributed.agreement import first_line, largest, on_all_processes
from drifting_jax.errors import UserError
from drifting_jax.workdir.checksums import leaf_path, named_checksums, named_leaves

Tree = Any

CHECKSUMS = "checksums"  # the item that holds the checksums of all others
# What running out of memory raises: it says nothing about the files.
NOT_DAMAGE = (UserError, MemoryError, jax.errors.JaxRuntimeError)
# What a disk or a network says that may answer the next time, and until then.
_PASSING = (errno.EIO, errno.EAGAIN, errno.EINTR, errno.ESTALE, errno.EREMOTEIO, errno.ETIMEDOUT,
            errno.ENOTCONN, errno.ECONNRESET, errno.ECONNABORTED, errno.EHOSTDOWN,
            errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.EMFILE,
            errno.ENFILE)  # fmt: skip
_PAUSES_SECONDS = (1.0, 5.0, 15.0)


def read_step(
    directory: Path, templates: Mapping[str, Tree], padded: Collection[str] = ()
) -> dict[str, Tree]:
    """Reads the items of a step on all processes, or raises on all.

    What a disk or a network answers that may be well in a moment is asked again, three times.

    Args:
      directory: The step's.
      templates, padded: Of `Checkpoints.restore_latest`, after `arrays_only`.

    Raises:
      UserError: An array differs from its template in name, shape or dtype.
      Exception: Of any kind, where a file is damaged.
    """
    for pause in (*_PAUSES_SECONDS, None):
        try:
            items = on_all_processes(_read, directory, templates, padded)
            on_all_processes(_verify, items)
            return {name: items[name] for name in templates}
        except Exception as error:
            if not largest(may_pass(error)) or pause is None:
                raise
            logging.warning(f"{directory}: {first_line(error)}; reading again in {pause:g} s")
        time.sleep(pause)


def may_pass(error: Exception) -> bool:
    """Whether an error of reading says that the disk failed, and nothing of what lies there."""
    if isinstance(error, NOT_DAMAGE):
        return False
    # TensorStore tells the number in words, and so does what another process has told.
    told = re.search(r"(?:Errno|OS error) (\d+)", str(error))
    return getattr(error, "errno", None) in _PASSING or bool(told and int(told[1]) in _PASSING)


def _read(
    directory: Path, templates: Mapping[str, Tree], padded: Collection[str]
) -> dict[str, Tree]:
    # The handlers and not the manager: its restore ends with a barrier, at which the others
    # would wait for a process that could not read its part.
    directory = epath.Path(directory)
    handler = ocp.StandardCheckpointHandler()
    items = {CHECKSUMS: ocp.JsonCheckpointHandler().restore(directory / CHECKSUMS)}
    for name, template in templates.items():
        _check_fits(directory / name, template, padded=name in padded)
        arguments = ocp.args.StandardRestore(template, strict=name not in padded)
        items[name] = handler.restore(directory / name, args=arguments)
    return items


def _check_fits(item: epath.Path, template: Tree, *, padded: bool) -> None:
    """Compares names, shapes and dtypes: Orbax would cast without a word."""
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
    """The tree with numbers as NumPy arrays.

    Raises:
      ValueError: It cannot be saved or restored as it is.
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
