"""Mistakes on the demo's command line: one line each, and exit status 2."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import quick_compiling
from own_flags import run_command

from drifting_jax import demo
from drifting_jax.commands import generator_choice
from drifting_jax.config import base_config, save_config
from drifting_jax.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "expected one of --workdir and --weights"),
        (["--workdir=a", "--weights=b"], "expected one of --workdir and --weights"),
        (["--workdir=a", "--share"], "Unknown command line flag 'share'"),
        (["--workdir=a", "--port=0"], "port"),
        (["--workdir=a", "--host=no.such.host.invalid"], "--host=no.such.host.invalid"),
        (["--workdir=no/such/run"], "holds no run"),
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


@pytest.mark.parametrize(
    "task, words, message",
    [
        ("pairs", (), "a run of task 'pairs'; the page shows 'generator' and 'toy': its training"),
        ("policy", (), "shows 'generator' and 'toy': python -m drifting_jax.rollout measures it"),
        ("encoder", (), "a run of task 'encoder'; the page shows 'generator' and 'toy'$"),
        ("toy", ("--vae=somewhere",), "--vae is for generators of latents"),
    ],
)
def test_a_run_that_is_not_shown_comes_before_a_missing_package(
    task, words, message, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "gradio", None)  # importing it fails
    save_config(tmp_path, base_config(task))
    with pytest.raises(UserError, match=message):
        run_command([demo, generator_choice], f"--workdir={tmp_path}", *words)


@pytest.mark.parametrize("task", ["policy", "pairs"])
def test_a_folder_that_is_not_shown_comes_before_a_missing_package(task, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    (tmp_path / "config.json").write_text(json.dumps({"network": task, "fields": {}}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=f"is of task '{task}'; the page shows 'generator' and"):
        run_command([demo, generator_choice], f"--weights={tmp_path}")
