"""Fifty steps of whole tiny configs give the same numbers on any mesh and as two processes."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import quick_compiling
import real_step

from drifting_jax.distributed import meshes

ROOT = Path(__file__).parents[2]
REAL_STEP = ROOT / "tests" / "helpers" / "real_step.py"
STEPS = 50


@pytest.fixture(scope="module", params=["pixel", "latent"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def expected(kind):
    return real_step.run(kind, meshes.make_mesh(1, 1), STEPS)


def assert_same(found, expected):
    """State (Adam's moments show the gradients) and curves, up to the order of sums."""
    assert found.keys() == expected.keys()
    moved = [name for name in expected if "params" in name and np.ptp(expected[name]) > 0]
    assert len(moved) > 10
    for name, value in expected.items():
        a, b = np.float64(found[name]), np.float64(value)
        assert np.isfinite(b).all(), name
        assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b), name


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [(2, 1), (1, 2), (4, 2)], ids=str)
def test_any_mesh_computes_the_same(kind, expected, mesh):
    assert_same(real_step.run(kind, meshes.make_mesh(*mesh), STEPS), expected)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["latent"], indirect=True)
def test_two_processes_compute_the_same(kind, expected, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    env = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": quick_compiling.on_devices(4),
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": "2",
        "PYTHONPATH": str(ROOT),
    }
    paths = [tmp_path / f"{i}.npz" for i in range(2)]
    processes = [
        subprocess.Popen(
            [
                sys.executable,
                str(ROOT / "tests" / "helpers" / "real_step.py"),
                kind,
                str(STEPS),
                str(path),
            ],
            env=env | {"JAX_PROCESS_ID": str(i)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for i, path in enumerate(paths)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=240)
            assert process.returncode == 0, errors[-3000:]
    finally:
        for process in processes:
            process.kill()
    for path in paths:
        with np.load(path) as found:
            assert_same(dict(found), expected)
