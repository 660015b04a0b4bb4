"""A run that is interrupted and goes on with other devices comes to the same parameters."""

import signal

import faults
import numpy as np
import pytest

STEPS = 12  # of the generator: few, since rounding apart grows with them
TOLERANCE = 1e-3  # of the norm of each array of parameters, averages and moments
FLAGS = (*faults.FLAGS, f"--config.train.num_steps={STEPS}")
EIGHT = {"devices": 8, "flags": (*FLAGS, "--config.mesh.fsdp=2")}
FOUR = {"devices": 4, "flags": (*FLAGS, "--config.mesh.fsdp=4")}
TWO_TIMES_FOUR = {"devices": 4, "processes": 2, "flags": FLAGS}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def whole(cache, tmp_path_factory):
    """The arrays of a run on eight devices that nobody disturbed."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    with faults.Start(workdir, cache=cache, **EIGHT) as start:
        start.finish()
    return faults.read_arrays(workdir)


@pytest.mark.slow
@pytest.mark.parametrize(
    "layouts",
    [
        [(7, EIGHT), (faults.ENCODER + 8, FOUR), (None, EIGHT)],
        [(faults.ENCODER + 8, TWO_TIMES_FOUR), (None, EIGHT)],
    ],
    ids=["8-4-8", "2x4-8"],
)
def test_a_run_moves_to_other_devices(layouts, whole, cache, tmp_path):
    workdir = tmp_path / "moved"
    for killed_after, layout in layouts:
        with faults.Start(workdir, cache=cache, **layout) as start:
            if killed_after is None:
                start.finish()
                assert start.resumed().startswith("resumed at generator step")
            else:
                reached = start.wait_for(lambda: start.place()[0] >= killed_after)  # noqa: B023
                assert reached, start.last_words()
                start.end(signal.SIGKILL)
    found = faults.read_arrays(workdir)
    assert found.keys() == whole.keys()
    apart = {}
    for name, expected in whole.items():
        if expected.dtype == np.float32:
            difference = np.linalg.norm(found[name].astype(np.float64) - expected)
            apart[name] = difference / max(np.linalg.norm(expected), 1e-12)
        else:  # the queue's images, positions and counts
            np.testing.assert_array_equal(found[name], expected, err_msg=name)
    worst = max(apart, key=apart.get)
    assert apart[worst] < TOLERANCE, (worst, apart[worst])
