"""Mistakes on the demo's command line: one line each, and exit status 2."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import quick_compiling

ROOT = Path(__file__).parents[2]
# What a run that is not there is told: first of all that the extra is missing.
NO_RUN = "holds no run" if importlib.util.find_spec("gradio") else "pip install -e '.[demo]'"


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "expected one of --workdir and --weights"),
        (["--workdir=a", "--weights=b"], "expected one of --workdir and --weights"),
        (["--workdir=a", "--share"], "Unknown command line flag 'share'"),
        (["--workdir=a", "--port=0"], "port"),
        (["--workdir=a", "--host=no.such.host.invalid"], "--host=no.such.host.invalid"),
        (["--workdir=no/such/run"], NO_RUN),
    ],
    ids=str,
)
def test_a_mistake_is_one_line(arguments, message):
    done = subprocess.run(
        [sys.executable, "-m", "drifting_jax.demo", *arguments],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": quick_compiling.FLAGS},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2 and not done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and message in line
