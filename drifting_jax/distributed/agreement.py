"""What all processes of a run do together, and fail at together."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from drifting_jax.errors import LockHeldError, TransientError, UserError

_TOLD_BYTES, _WAITED = 300, "DEADLINE_EXCEEDED"
_KINDS = {kind.__name__: kind for kind in (UserError, TransientError, LockHeldError)}


def on_all_processes(action: Callable[..., Any], *arguments: Any) -> Any:
    """Does what every process must do; where it fails on one it fails on all, so none waits.

    Raises:
      Exception: what `action` raised on this process.
      UserError, TransientError, LockHeldError: another process raised it.
      OSError: `action` failed on another process otherwise.
    """
    result, error = None, None
    try:
        result = action(*arguments)
    except Exception as raised:
        error = raised
    if jax.process_count() > 1:
        told = np.zeros(_TOLD_BYTES, np.uint8)
        words = b"" if error is None else first_line(error).encode()[:_TOLD_BYTES]
        told[: len(words)] = np.frombuffer(words, np.uint8)
        all_told = [bytes(x).rstrip(b"\0") for x in multihost_utils.process_allgather(told)]
        failed = [(i, x.decode(errors="replace")) for i, x in enumerate(all_told) if x]
        if failed and (error is None or _WAITED in str(error)):
            # One that only waited for another tells less.
            first = next((x for x in failed if _WAITED not in x[1]), failed[0])
            kind, _, reason = first[1].partition(": ")
            if kind in _KINDS:
                error = _KINDS[kind](f"process {first[0]}: {reason}")
            else:
                error = OSError("process {}: {}".format(*first))
    if error is not None:
        raise error
    return result


def largest(value: int) -> int:
    """The largest of the numbers that all processes give; all of them must call it."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.process_allgather(np.int32(value)).max())


def first_line(error: BaseException) -> str:
    """An error in a line: its kind and the first words that it has."""
    text = str(error).strip().partition("\n")[0].partition(" See full TensorStore")[0][:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
