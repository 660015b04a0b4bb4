"""What the processes of a run do together, so that they go on, stop and fail together.

All processes must call each of these functions, in the same order. With one process they exchange
nothing.
"""

import json
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from numpy.typing import ArrayLike

from drifting_jax.distributed.processes import is_main_process
from drifting_jax.errors import LockHeldError, TransientError, UserError, first_line
from drifting_jax.files import shown

T = TypeVar("T")

_BLOCK_BYTES = 256  # messages are padded to multiples: each length is another program to compile
_TIMED_OUT = "DEADLINE_EXCEEDED"  # in the error of a process that waited for another in vain
_ERRORS = {kind.__name__: kind for kind in (UserError, TransientError, LockHeldError)}


def on_all_processes(action: Callable[..., T], *arguments: Any) -> T:
    """Calls `action(*arguments)` on every process; a failure on one is a failure on all.

    Returns:
      What the action returned on this process.

    Raises:
      Exception: what the action raised on this process.
      UserError, TransientError, LockHeldError: the action raised it on another process.
      OSError: the action raised anything else on another process.
    """
    result: Any = None
    error: Exception | None = None
    try:
        result = action(*arguments)
    except Exception as raised:
        error = raised
    error = _shared_failure(error)
    if error is not None:
        raise error
    return result


def on_main_process(action: Callable[..., T], *arguments: Any) -> T:
    """Calls `action(*arguments)` on the main process, while the others wait for its result.

    Returns:
      What the action returned, on all processes. JSON must be able to hold it.

    Raises:
      Exception: as `on_all_processes`.
    """
    if jax.process_count() == 1:
        return action(*arguments)

    def act() -> bytes:
        return json.dumps(action(*arguments)).encode() if is_main_process() else b""

    return json.loads(_exchange(on_all_processes(act))[0])


def from_main_process(value: T) -> T:
    """Returns the main process's value, which JSON must be able to hold, on all processes."""
    if jax.process_count() == 1:
        return value
    return json.loads(_exchange(json.dumps(value).encode() if is_main_process() else b"")[0])


def any_process(condition: bool) -> bool:
    """Returns whether the condition holds on any process."""
    return bool(largest(np.int32(condition)))


def largest(values: ArrayLike) -> np.ndarray:
    """Returns the elementwise largest of the arrays, of one shape, that the processes give."""
    if jax.process_count() == 1:
        return np.asarray(values)
    return np.asarray(multihost_utils.process_allgather(np.asarray(values)).max(axis=0))


def require_same(value: bytes, words: str) -> None:
    """Checks that all processes give the same bytes.

    Args:
      value: such as a digest of the data that this process sees.
      words: what the error says of a process that differs, after "process 3".

    Raises:
      UserError: the bytes of a process differ from the main process's; raised on all.
    """
    values = _exchange(value)
    for process, other in enumerate(values):
        if other != values[0]:
            raise UserError(f"process {process} {words}")


def wait_for_all() -> None:
    """Returns when all processes have called it."""
    _exchange(b"")


def _shared_failure(error: Exception | None) -> Exception | None:
    """Returns the error to raise here, given this process's own; None if no process has one."""
    if jax.process_count() == 1:
        return error
    told = _exchange(b"" if error is None else shown(first_line(error)).encode())
    failed = [(i, words.decode()) for i, words in enumerate(told) if words]
    if not failed or (error is not None and _TIMED_OUT not in str(error)):
        return error
    # A process that only waited for another does not know the cause.
    process, words = next((x for x in failed if _TIMED_OUT not in x[1]), failed[0])
    kind, _, reason = words.partition(": ")
    if kind in _ERRORS:
        return _ERRORS[kind](f"process {process}: {reason}")
    return OSError(f"process {process}: {words}")


def _exchange(own: bytes) -> list[bytes]:
    """Returns the bytes that each process gives, in the order of the processes."""
    if jax.process_count() == 1:
        return [own]
    lengths = [int(n) for n in multihost_utils.process_allgather(np.int32(len(own)))]
    if not any(lengths):
        return [b""] * len(lengths)
    padded = np.zeros(-(-max(lengths) // _BLOCK_BYTES) * _BLOCK_BYTES, np.uint8)
    padded[: len(own)] = np.frombuffer(own, np.uint8)
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [row[:length].tobytes() for row, length in zip(rows, lengths, strict=True)]
