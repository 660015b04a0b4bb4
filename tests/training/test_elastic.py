"""A run that is interrupted and goes on with other devices comes to the same parameters."""

import signal

import faults
import numpy as np
import pytest

from drifting_jax.workdir.metrics import read_metrics

STEPS = 12  # of the generator: few, since rounding apart grows with them
TOLERANCE = 1e-3  # of the norm of each array of parameters, averages and moments
# A temperature of 0.05 makes of the rounding of a distance twenty times that, and then moments of
# 1e-8, as the attention of a new generator has them, differ by whole per cents on some CPUs.
FLAGS = (
    *faults.FLAGS,
    f"--config.train.num_steps={STEPS}",
    "--config.drift.temperatures=(0.2,1.0)",
)
EIGHT = {"devices": 8, "flags": (*FLAGS, "--config.mesh.fsdp=2")}
FOUR = {"devices": 4, "flags": (*FLAGS, "--config.mesh.fsdp=4")}
TWO_TIMES_FOUR = {"devices": 4, "processes": 2, "flags": FLAGS}
# The devices of each start, and the steps of the whole run after which it is killed.
LAYOUTS = (
    (EIGHT, 7),
    (FOUR, faults.ENCODER + 4),
    (TWO_TIMES_FOUR, faults.ENCODER + 8),
    (EIGHT, None),
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The workdir of a run on one device that nobody disturbed."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    with faults.Start(workdir, flags=FLAGS) as start:
        start.finish()
    return workdir


@pytest.mark.slow
def test_a_run_moves_to_other_devices(whole, tmp_path):
    """To fewer, to more as two processes, and from two processes to one."""
    workdir = tmp_path / "moved"
    for layout, killed_after in LAYOUTS:
        with faults.Start(workdir, **layout) as start:
            if killed_after is None:
                start.finish()
                assert start.resumed().startswith("resumed at generator step")
            else:
                reached = start.wait_for(lambda: start.place()[0] >= killed_after)  # noqa: B023
                assert reached, start.last_words()
                start.end(signal.SIGKILL)
    assert_same_curves(workdir, whole)
    assert_same_arrays(faults.read_arrays(workdir), faults.read_arrays(whole))
    ours, theirs = (
        np.load(x / "samples" / "final.npz")["arr_0"].astype(int) for x in (workdir, whole)
    )
    assert np.abs(ours - theirs).max() <= 2  # of 255, after some steps of rounding apart


def assert_same_curves(workdir, whole):
    found, expected = read_metrics(workdir), read_metrics(whole)
    assert [(r["stage"], r["step"]) for r in found] == [(r["stage"], r["step"]) for r in expected]
    for ours, theirs in zip(found, expected, strict=True):
        # Each start measures its own compilations, in the first row that follows them.
        assert ours.keys() ^ theirs.keys() <= {"compile_seconds"}
        if "loss" in theirs:
            np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=1e-4)
            np.testing.assert_allclose(ours["grad_norm"], theirs["grad_norm"], rtol=1e-3)


def assert_same_arrays(found, expected):
    assert found.keys() == expected.keys()
    apart = {}
    for name, value in expected.items():
        ours, rest = np.split(found[name], [len(value)]) if value.ndim else (found[name], [])
        assert not np.any(rest), name  # rows that pad the queue to the devices
        if value.dtype == np.float32:
            difference = np.linalg.norm(ours.astype(np.float64) - value)
            apart[name] = difference / max(np.linalg.norm(value), 1e-12)
        else:  # the queue's images, positions and counts
            np.testing.assert_array_equal(ours, value, err_msg=name)
    worst = max(apart, key=apart.get)
    assert apart[worst] < TOLERANCE, (worst, apart[worst])
