"""What processes do together: one result for all, and one failure for all.

Run as a program, this file is one process of two: see `worker`.
"""

import contextlib
import errno
import functools
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import child_processes
import jax
import numpy as np
import pytest
import quick_compiling

from drifting_jax.distributed import agreement, processes
from drifting_jax.errors import LockHeldError, TransientError, UserError


def test_one_process_agrees_with_itself():
    assert agreement.on_all_processes(divmod, 7, 2) == (3, 1)
    assert agreement.on_main_process(divmod, 7, 2) == (3, 1)
    assert agreement.from_main_process([1, None]) == [1, None]
    assert agreement.any_process(True) and not agreement.any_process(False)
    np.testing.assert_array_equal(agreement.largest(np.float32([1, np.inf])), [1, np.inf])
    agreement.require_same(b"", "differs")
    agreement.wait_for_all()


@pytest.mark.parametrize("function", [agreement.on_all_processes, agreement.on_main_process])
def test_one_process_raises_its_own_error(function):
    error = OSError(errno.EIO, "DEADLINE_EXCEEDED")

    def fail():
        raise error

    with pytest.raises(OSError) as raised:
        function(fail)
    assert raised.value is error


def attempt(function, *arguments):
    """What a function returns, or its error in words."""
    try:
        return function(*arguments)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def fail(errors):
    """Raises this process's error; returns its number if it has none."""
    if error := errors.get(jax.process_index()):
        raise error
    return jax.process_index()


def worker(address: str, number: str) -> None:
    """One process of two; prints what it gets."""
    processes.initialize(coordinator_address=address, num_processes=2, process_id=int(number))
    own, long = jax.process_index(), "x" * 700
    timed_out = RuntimeError("DEADLINE_EXCEEDED: barrier")
    together = functools.partial(attempt, agreement.on_all_processes, fail)
    alone = functools.partial(attempt, agreement.on_main_process, fail)
    found = {
        "each": together({}),
        "mistake": together({1: UserError("no such\nfile")}),
        "lock": together({0: LockHeldError("held")}),
        "both": together({0: TransientError("a"), 1: KeyError("b")}),
        "other": together({1: KeyError(long)}),
        "waited": together({0: timed_out, 1: OSError(errno.ENOSPC, "full")}),
        "all waited": together({0: timed_out, 1: timed_out}),
        "main": alone({}),
        "main fails": alone({0: UserError("wrong")}),
        "only the main process acts": alone({1: UserError("wrong")}),
        "result": agreement.on_main_process(lambda: {"steps": [1, 2], "name": long}),
        "nothing": agreement.on_main_process(lambda: None),
        "value": agreement.from_main_process([own, f"of {own}", None]),
        "any": [agreement.any_process(own == 1), agreement.any_process(own > 1)],
        "largest": agreement.largest(np.float32([own, -own])).tolist(),
        "same": attempt(agreement.require_same, b"a", "differs"),
        "length": attempt(agreement.require_same, b"a" * own, f"differs from {own}"),
    }
    agreement.wait_for_all()
    print(json.dumps(found), flush=True)


def test_two_processes(processes_can_meet):
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        address = f"localhost:{listener.getsockname()[1]}"
    root = Path(__file__).parents[2]
    paths = os.pathsep.join([str(root), str(root / "tests" / "helpers")])
    with contextlib.ExitStack() as stack:
        children = [
            stack.enter_context(
                child_processes.started(
                    [sys.executable, __file__, address, number],
                    env=os.environ | {"XLA_FLAGS": quick_compiling.FLAGS, "PYTHONPATH": paths},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
            for number in "01"
        ]
        results = []
        for child in children:
            printed, errors = child.communicate(timeout=120)
            assert child.returncode == 0, errors
            results.append(json.loads(printed.splitlines()[-1]))
    main, other = results
    different = {
        "each": (0, 1),
        "mistake": ("UserError: process 1: no such", "UserError: no such\nfile"),
        "lock": ("LockHeldError: held", "LockHeldError: process 0: held"),
        "both": ("TransientError: a", "KeyError: 'b'"),
        "waited": ("OSError: process 1: OSError: [Errno 28] full", "OSError: [Errno 28] full"),
        "main fails": ("UserError: wrong", "UserError: process 0: wrong"),
        "length": ("UserError: process 1 differs from 0", "UserError: process 1 differs from 1"),
    }
    for name, expected in different.items():
        assert (main.pop(name), other.pop(name)) == expected
    told = main.pop("other")
    assert told.startswith("OSError: process 1: KeyError: 'xxx") and len(told) < 400
    assert other.pop("other") == f"KeyError: {'x' * 700!r}"
    assert main == other
    assert main == {
        "all waited": "OSError: process 0: RuntimeError: DEADLINE_EXCEEDED: barrier",
        "main": 0,
        "only the main process acts": 0,
        "result": {"steps": [1, 2], "name": "x" * 700},
        "nothing": None,
        "value": [0, "of 0", None],
        "any": [True, False],
        "largest": [1.0, 0.0],
        "same": None,
    }


if __name__ == "__main__":
    worker(*sys.argv[1:])
