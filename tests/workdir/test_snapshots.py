"""Files of snapshots: what they hold, and what is damage."""

import numpy as np
import pytest

from drifting_jax.errors import UserError
from drifting_jax.workdir import snapshots


def averages(seed: int) -> dict:
    rng = np.random.default_rng(seed)
    tree = {"a": {"kernel": rng.normal(size=(3, 2)).astype(np.float32)}, "b": np.float32([7e4, 1])}
    return {0.05: tree, 0.1: {**tree, "b": np.float32([2.0, 3.0])}}


def test_a_snapshot_reads_back_to_half_precision(tmp_path):
    folder = tmp_path / "snapshots"
    assert snapshots.snapshot_steps(folder) == []
    written = averages(0)
    for step in (20, 5):
        snapshots.write_snapshot(folder, step=step, updates=step - 1, averages=written)
    assert snapshots.snapshot_steps(folder) == [5, 20]
    assert snapshots.read_header(folder, 20) == (19, (0.05, 0.1))
    found = snapshots.read_averages(folder, 20)
    assert {width: sorted(params) for width, params in found.items()} == {
        0.05: ["a/kernel", "b"],
        0.1: ["a/kernel", "b"],
    }
    kernel = found[0.05]["a/kernel"]
    assert kernel.dtype == np.float16
    np.testing.assert_allclose(kernel, written[0.05]["a"]["kernel"], rtol=2**-11)
    assert found[0.05]["b"].dtype == np.float32  # 70000 is beyond float16
    np.testing.assert_array_equal(found[0.05]["b"], [7e4, 1])


def test_a_snapshot_takes_the_place_of_one_of_its_step(tmp_path):
    for updates in (3, 4):
        snapshots.write_snapshot(tmp_path, step=5, updates=updates, averages=averages(updates))
    assert snapshots.read_header(tmp_path, 5).updates == 4
    assert [path.name for path in tmp_path.iterdir()] == ["00000005.npz"]


def test_a_file_that_is_cut_off_is_named(tmp_path):
    snapshots.write_snapshot(tmp_path, step=5, updates=5, averages=averages(0))
    path = tmp_path / "00000005.npz"
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(UserError, match=r"00000005\.npz is damaged, or no snapshot .*: delete it"):
        snapshots.read_header(tmp_path, 5)
    with pytest.raises(UserError, match=r"00000005\.npz"):
        snapshots.read_averages(tmp_path, 5)
