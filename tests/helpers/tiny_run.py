"""Starts main.py on the tiny config, and reads what it leaves in its workdir."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import quick_compiling
import tiny_config
from child_processes import started

from drifting_jax.config import resolve
from drifting_jax.data.sources import make_source
from drifting_jax.distributed import transfer
from drifting_jax.training import build, programs
from drifting_jax.workdir.checkpoint import Checkpoints
from drifting_jax.workdir.metrics import read_metrics

ROOT = Path(__file__).parents[2]
CONFIG = "tests/helpers/tiny_config.py"
PATIENCE = 300.0  # seconds after which a run that does not move on counts as stuck


def config(**changes):
    """The tiny config with fields changed: train__num_steps=3."""
    found = tiny_config.get_config()
    found.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return resolve(found)


@contextlib.contextmanager
def start(*arguments: str) -> Iterator[subprocess.Popen]:
    """Context of a Python process in the repository, on one device."""
    with started(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": quick_compiling.FLAGS},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        yield process


def launch(workdir: Path, *arguments: str) -> contextlib.AbstractContextManager[subprocess.Popen]:
    """Context of a process that trains the tiny config in a workdir."""
    return start("main.py", f"--config={CONFIG}", f"--workdir={workdir}", *arguments)


def finish(process: subprocess.Popen) -> SimpleNamespace:
    """Waits until a process has ended: `status`, and `out` and `error`, which it printed."""
    out, error = process.communicate(timeout=PATIENCE)
    return SimpleNamespace(status=process.returncode, out=out, error=error)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen) -> None:
    """Returns as soon as the condition holds, while the process still runs."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, finish(process)
        assert time.monotonic() < deadline, "the run did not come that far"
        time.sleep(0.01)


def steps(directory: Path) -> list[int]:
    """Whole checkpoints in a directory."""
    return sorted(int(p.name) for p in directory.glob("*") if p.name.isdecimal())


def last_logged(workdir: Path) -> int:
    """Step of the generator's last line of metrics."""
    return max((r["step"] for r in read_metrics(workdir, stage="generator")), default=0)


def read_checkpoint(directory: Path, at: int, tmp_path: Path) -> dict[str, np.ndarray]:
    """Every array of one checkpoint of the generator."""
    alone = tmp_path / f"{directory.parent.name}_{at}"
    alone.mkdir()
    (alone / str(at)).symlink_to(directory / str(at))
    source = make_source(config().data, "train")
    mesh = build.make_mesh(config())
    program = programs.generator_program(config(), source, mesh)
    template = program.checkpoint_items(program.carry, 0)
    with Checkpoints(alone, keep=1, read_only=True) as checkpoints:
        step, items = checkpoints.restore_latest(template)
    assert step == at
    found = jax.tree_util.tree_leaves_with_path(transfer.fetch(items))
    return {jax.tree_util.keystr(path): leaf for path, leaf in found}
