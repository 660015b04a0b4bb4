"""Demonstrations: files of every format, each written with its own library, and bad ones."""

import json

import numpy as np
import pytest

from drifting_jax.errors import UserError
from drifting_jax.policy.demonstrations import Demonstrations, read_demonstrations
from drifting_jax.policy.readers import Keys

LENGTHS = (3, 5, 4)
ENDS = np.cumsum(LENGTHS)


def draw(seed=0, observation=3, action=2):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(sum(LENGTHS), n)).astype(np.float32) for n in (observation, action))


def write_npz(path, **changes):
    observations, actions = draw()
    arrays = {"observations": observations, "actions": actions, "episode_ends": ENDS} | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return arrays


def check(found, observations, actions):
    assert found.observations.dtype == found.actions.dtype == np.float32
    np.testing.assert_array_equal(found.observations, observations)
    np.testing.assert_array_equal(found.actions, actions)
    np.testing.assert_array_equal(found.episode_ends, ENDS)


def test_an_npz_file(tmp_path):
    path = tmp_path / "demos.npz"
    arrays = write_npz(path)
    found = read_demonstrations(str(path))
    check(found, arrays["observations"], arrays["actions"])
    np.testing.assert_array_equal(found.episode_starts, [0, 3, 8])
    other = read_demonstrations(str(path), format="npz")
    assert found.fingerprint == other.fingerprint
    write_npz(path, actions=arrays["actions"] + 1)
    assert found.fingerprint != read_demonstrations(str(path)).fingerprint


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"actions": None}, r"must hold actions; found observations, episode_ends"),
        (
            {"actions": np.ones(12)},
            r"actions of .* must be numbers .* found \[12\] float",
        ),
        ({"actions": np.ones((12, 0))}, r"not empty; found \[12, 0\]"),
        ({"actions": np.array([["a"]] * 12)}, r"must be numbers"),
        ({"actions": np.ones((12, 1), complex)}, r"must be numbers"),
        ({"actions": np.ones((11, 2))}, "one action for each observation; found 12 .* 11 actions"),
        ({"observations": np.full((12, 1), np.nan)}, "must be finite; step 0 is not"),
        ({"observations": np.full((12, 1), 1e39)}, "must be finite; step 0 is not"),
        (
            {"episode_ends": ENDS.astype(float)},
            r"must be integers .* found \[3\] float",
        ),
        (
            {"episode_ends": np.array([3, 8])},
            "end with the number of steps, 12; found 3 to 8",
        ),
        ({"episode_ends": np.array([8, 3, 12])}, "must rise and end"),
        ({"episode_ends": np.array([0, 12])}, "must rise and end"),
    ],
    ids=str,
)
def test_arrays_that_do_not_fit_are_named(tmp_path, changes, says):
    path = tmp_path / "demos.npz"
    write_npz(path, **changes)
    with pytest.raises(UserError, match=says):
        read_demonstrations(str(path))


def test_paths_that_cannot_be_read(tmp_path):
    for path, says in (
        ("", "config.data.path must name the demonstrations"),
        (tmp_path / "none.npz", "does not exist"),
        (tmp_path, "neither a file that ends in .npz, .hdf5"),
    ):
        with pytest.raises(UserError, match=says):
            read_demonstrations(str(path))
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(UserError, match=r"bad\.npz cannot be read as npz: "):
        read_demonstrations(str(tmp_path / "bad.npz"))
    write_npz(tmp_path / "demos.npz")
    with pytest.raises(UserError, match=r"observation_keys and action_key are not for \.npz"):
        read_demonstrations(str(tmp_path / "demos.npz"), keys=Keys(("state",)))


def test_the_last_episodes_are_held_out():
    observations, actions = draw()
    every = Demonstrations(observations, actions, ENDS)
    assert every.split(0) == (every, None)
    kept, others = every.split(1)
    np.testing.assert_array_equal(kept.observations, observations[:8])
    np.testing.assert_array_equal(kept.episode_ends, [3, 8])
    np.testing.assert_array_equal(others.actions, actions[8:])
    np.testing.assert_array_equal(others.episode_ends, [4])
    with pytest.raises(UserError, match="held_out_episodes must be below the 3 episodes; found 3"):
        every.split(3)


def test_a_file_of_robomimic(tmp_path):
    h5py = pytest.importorskip("h5py")
    observations, actions = draw()
    path = tmp_path / "low_dim.hdf5"
    with h5py.File(path, "w") as file:
        for i in (2, 0, 1):  # demo_10 would come before demo_2 by name
            part = slice(ENDS[i] - LENGTHS[i], ENDS[i])
            group = file.create_group(f"data/demo_{i * 5}")
            group["actions"] = actions[part].astype(np.float64)
            group["obs/eef_pos"] = observations[part, :2]
            group["obs/object"] = observations[part, 2:]
            group["obs/image"] = np.zeros((LENGTHS[i], 4, 4, 3), np.uint8)
        file["mask/train"] = np.array([b"demo_0"])
    check(read_demonstrations(str(path)), observations, actions)
    keys = Keys(("object", "eef_pos"))
    found = read_demonstrations(str(path), keys=keys)
    np.testing.assert_array_equal(found.observations, observations[:, [2, 0, 1]])
    with pytest.raises(UserError, match="data/demo_0, must hold joint; found eef_pos, image, obj"):
        read_demonstrations(str(path), keys=Keys(("joint",)))
    with h5py.File(path, "w") as file:
        file["data/other"] = np.zeros(1)
    with pytest.raises(UserError, match=r"no groups data/demo_<number>; found \['other'\]"):
        read_demonstrations(str(path))


@pytest.mark.parametrize(("zipped", "version"), [(False, 2), (True, 2), (False, 3)])
def test_a_replay_buffer_of_diffusion_policy(tmp_path, zipped, version):
    """Its own buffers are of version 2 of zarr's format."""
    zarr = pytest.importorskip("zarr")
    observations, actions = draw()
    path = tmp_path / ("demos.zarr.zip" if zipped else "demos.zarr")
    points = np.stack([observations, observations + 1], axis=2)  # [T, 3, 2]
    store = zarr.storage.ZipStore(str(path), mode="w") if zipped else str(path)
    root = zarr.open_group(store, mode="w", zarr_format=version)
    arrays = {"data/state": observations, "data/action": actions, "data/keypoint": points}
    for name, array in {**arrays, "meta/episode_ends": ENDS}.items():
        group, _, leaf = name.partition("/")
        target = root.require_group(group)
        made = target.create_array(leaf, shape=array.shape, dtype=array.dtype)
        made[:] = array
    if zipped:
        store.close()
    check(read_demonstrations(str(path)), observations, actions)
    found = read_demonstrations(str(path), keys=Keys(("keypoint", "state")))
    wanted = np.concatenate([points.reshape(len(points), -1), observations], axis=1)
    np.testing.assert_array_equal(found.observations, wanted)
    with pytest.raises(UserError, match="must hold img; found "):
        read_demonstrations(str(path), keys=Keys(("img",)))


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_a_data_set_of_lerobot(tmp_path, version):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    observations, actions = draw()
    episode = np.repeat(np.arange(3), LENGTHS)
    frame = np.concatenate([np.arange(n) for n in LENGTHS])
    folder = tmp_path / "pusht" / "data" / "chunk-000"
    folder.mkdir(parents=True)
    (tmp_path / "pusht" / "meta").mkdir()
    (tmp_path / "pusht" / "meta" / "info.json").write_text(
        json.dumps({"codebase_version": version})
    )
    order = [episode == 2, episode < 2] if version == "v3.0" else [episode == i for i in range(3)]
    for i, rows in enumerate(order):
        state = pyarrow.FixedSizeListArray.from_arrays(observations[rows, :2].ravel(), 2)
        columns = {
            "observation.state": state if version == "v3.0" else list(observations[rows, :2]),
            "observation.environment_state": observations[rows, 2],
            "action": list(actions[rows]),
            "episode_index": episode[rows],
            "frame_index": frame[rows],
        }
        name = f"file-{i:03d}" if version == "v3.0" else f"episode_{i:06d}"
        parquet.write_table(pyarrow.table(columns), folder / f"{name}.parquet")
    found = read_demonstrations(str(tmp_path / "pusht"))
    check(found, observations, actions)
    found = read_demonstrations(str(tmp_path / "pusht"), keys=Keys(("observation.state",)))
    np.testing.assert_array_equal(found.observations, observations[:, :2])
    one = read_demonstrations(str(next(iter(folder.iterdir()))), format="lerobot")
    assert len(one.episode_ends) in (1, 2)
    with pytest.raises(UserError, match=r"has no column observation\.images; it has observation"):
        read_demonstrations(str(tmp_path / "pusht"), keys=Keys(("observation.images",)))


@pytest.mark.parametrize(
    ("name", "library"), [("a.hdf5", "h5py"), ("a.zarr.zip", "zarr"), ("a.parquet", "pyarrow")]
)
def test_a_library_that_is_missing_is_named(tmp_path, monkeypatch, name, library):
    import sys

    (tmp_path / name).write_bytes(b"")
    for module in (library, f"{library}.parquet"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"needs {library}, which is not installed: pip install"):
        read_demonstrations(str(tmp_path / name))
