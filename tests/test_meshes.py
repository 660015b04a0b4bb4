"""The same run on one device, on eight, and as two processes: programs compared by their logs."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from drifting_jax.metrics import read_metrics

ROOT = Path(__file__).parent.parent
FEW_STEPS = (
    "--config.mesh.data=-1",
    "--config.encoder.train.num_steps=10",
    "--config.encoder.train.classifier_steps=5",
    "--config.train.num_steps=8",
    "--config.train.generated_per_label=8",
    "--config.train.sample_every=8",
    "--config.log_every=2",
)


def start(workdir, *flags, devices):
    environment = {
        **os.environ,
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} "
        "--xla_backend_optimization_level=0",
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, "main.py", "--config=tests/tiny_config.py", f"--workdir={workdir}"]
    return subprocess.Popen(
        [*command, *FEW_STEPS, *flags],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(*processes):
    for process in processes:
        output, _ = process.communicate(timeout=240)
        assert process.returncode == 0, output


def free_port():
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


@pytest.mark.slow
def test_one_device_eight_devices_and_two_processes_log_the_same_losses(tmp_path):
    finish(start(tmp_path / "one", devices=1))
    finish(start(tmp_path / "eight", "--config.mesh.fsdp=2", devices=8))
    together = ("--num_processes=2", f"--coordinator=localhost:{free_port()}")
    finish(*(start(tmp_path / "two", *together, f"--process_id={i}", devices=4) for i in range(2)))
    expected = read_metrics(tmp_path / "one")
    assert [r["stage"] for r in expected].count("generator") == 4
    for other in ("eight", "two"):
        found = read_metrics(tmp_path / other)
        assert [(r["stage"], r["step"]) for r in found] == [
            (r["stage"], r["step"]) for r in expected
        ]
        for ours, theirs in zip(expected, found, strict=True):
            if ours["stage"] == "evaluation":
                continue
            assert ours.keys() == theirs.keys()
            np.testing.assert_allclose(theirs["loss"], ours["loss"], rtol=1e-4)
            np.testing.assert_allclose(theirs["grad_norm"], ours["grad_norm"], rtol=1e-3)
        samples = np.load(tmp_path / other / "samples" / "final.npz")["arr_0"].astype(int)
        ours = np.load(tmp_path / "one" / "samples" / "final.npz")["arr_0"].astype(int)
        assert np.abs(samples - ours).max() <= 2  # of 255, after 8 steps of rounding apart


def test_rows_that_do_not_split_are_refused_with_those_that_do(tmp_path):
    process = start(tmp_path / "run", "--config.train.generated_per_label=3", devices=8)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    errors = [line for line in output.splitlines() if line.startswith("error:")]
    assert len(errors) == 1, output
    assert "make the rows 8, or the samples per row 8" in errors[0]
