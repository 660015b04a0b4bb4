"""Worker processes: in scripts and notebooks, and what is said when they fail."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from drifting_jax.data import workers
from drifting_jax.data.digits import DigitsSource
from drifting_jax.data.pipeline import batches
from drifting_jax.errors import TransientError

ROOT = Path(__file__).parents[2]

# No parsed flags, and no `if __name__ == "__main__"`.
_SCRIPT = """
import os
print("ran")
from drifting_jax.data.digits import DigitsSource
from drifting_jax.data.pipeline import batches
with batches(DigitsSource(), batch_size=8, seed=0, num_workers=2) as found:
    print([int(next(found)["index"][0]) for _ in range(2)])
print(os.path.basename(__file__), __spec__)
"""


def test_a_plain_script_may_use_workers(tmp_path):
    (tmp_path / "script.py").write_text(_SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(tmp_path / "script.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    with batches(DigitsSource(), batch_size=8, seed=0) as found:
        expected = [int(next(found)["index"][0]) for _ in range(2)]
    assert done.stdout.splitlines() == ["ran", str(expected), "script.py None"], done.stderr


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        RuntimeError("Worker process was terminated unexpectedly with exit code -7. Search …"),
    ],
)
def test_too_little_shared_memory_is_named(error):
    with pytest.raises(TransientError) as caught, workers.explained(2):
        raise error
    message = str(caught.value)
    for part in ("/dev/shm (", " MiB", "docker run --shm-size=", "--config.data.num_workers=0"):
        assert part in message
    assert "\n" not in message


def test_other_failures_are_not_taken_for_it():
    killed = RuntimeError("Worker process was terminated unexpectedly with exit code -9. Search")
    expected = pytest.raises(TransientError, match=r"exit code -9, killed, perhaps because memory")
    with expected, workers.explained(2):
        raise killed
    with pytest.raises(RuntimeError, match="record 3"), workers.explained(2):
        raise RuntimeError("record 3: OSError: no such file")
    with pytest.raises(OSError, match="left"), workers.explained(0):
        raise OSError(errno.ENOSPC, "No space left on device")
