"""Every test runs on eight simulated CPU devices with strict ranks: set before jax is imported."""

import gc
import os
import shutil
import socket
import tempfile
import uuid

import own_processes
import pytest
import quick_compiling

_FLAGS = quick_compiling.on_devices(8)
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAGS}".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Programs without the lines of Python that they come from are traced and lowered faster.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")
# One program is compiled once for all workers and all the processes that they start.
_OWN_CACHE = "JAX_COMPILATION_CACHE_DIR" not in os.environ
if _OWN_CACHE:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="compiled_")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
_FIRST = own_processes.OF_A_RUN not in os.environ  # workers inherit the variable
if _FIRST:
    os.environ[own_processes.OF_A_RUN] = uuid.uuid4().hex

import jax  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")


_LONG_FILES = ("training", "launch", "commands", "steps", "models")


def pytest_collection_modifyitems(items):
    """The folders with the longest files go first, so that no worker is left alone with one."""
    items.sort(key=lambda item: not item.path.parent.name.startswith(_LONG_FILES))


def pytest_collection_finish():
    """What is imported stays, and is not searched for garbage: tracing makes many objects."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)


@pytest.fixture(scope="session")
def processes_can_meet():
    """Skips a test of several processes on a machine that does not know its own name."""
    name = socket.gethostname()
    try:
        socket.gethostbyname(name)
    except OSError:
        pytest.skip(f"JAX's processes cannot meet: this machine's name {name} is not in /etc/hosts")


def pytest_unconfigure():
    """Leaves neither processes nor compiled programs behind, after all workers have ended."""
    if _FIRST:
        left = own_processes.end(own_processes.OF_A_RUN, os.environ[own_processes.OF_A_RUN])
        for command in left:
            print(f"a test left a process, which was ended: {command}")
    if _OWN_CACHE:
        shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
