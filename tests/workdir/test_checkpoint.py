"""Checkpoints are whole or not there, fit any mesh, and are never silently wrong."""

import errno
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import absl.logging
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import quick_compiling
from child_processes import started
from flax import struct
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from drifting_jax.errors import TransientError, UserError
from drifting_jax.workdir.checkpoint import Checkpoints

# After an error, Orbax leaves failed coroutines and threads behind.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]


@struct.dataclass
class State:
    step: jax.Array
    params: dict
    moments: tuple
    averages: tuple


def _mesh(devices: int) -> Mesh:
    return Mesh(np.array(jax.devices()[:devices]).reshape(-1), ("data",))


def _state(seed: int, mesh: Mesh | None = None) -> State:
    """Returns a state with every kind of leaf that a run saves; matrices are sharded."""
    rng = np.random.default_rng(seed)
    params = {
        "dense": {"kernel": rng.standard_normal((64, 96)).astype(np.float32)},
        "bias": jnp.asarray(rng.standard_normal(5), jnp.bfloat16),
    }
    state = State(
        step=np.int32(seed),
        params=params,
        moments=optax.adamw(1e-3).init(params),
        averages=(
            params,
            {"images": rng.integers(0, 256, (16, 3), np.uint8), "full": rng.random(2) < 0.5},
        ),
    )
    return jax.tree.map(lambda x: jax.device_put(x, _sharding(x, mesh or _mesh(1))), state)


def _sharding(x, mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P("data") if x.ndim == 2 else P())


def _template(state: State, mesh: Mesh) -> State:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=_sharding(x, mesh)), state
    )


def _assert_same(found: State, expected: State) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def _largest_file(directory: Path) -> Path:
    return max((p for p in directory.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


@pytest.fixture
def messages():
    """A list of the warnings and errors that are logged."""
    found: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record):
            found.append(record.getMessage())

    handler = Collect(logging.WARNING)
    absl.logging.get_absl_logger().addHandler(handler)
    yield found
    absl.logging.get_absl_logger().removeHandler(handler)


def test_restores_on_other_meshes(tmp_path):
    state = _state(3, _mesh(8))
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.restore_latest({"state": _template(state, _mesh(8))}) is None
        checkpoints.save(3, {"state": state, "data": {"batches": 7}})
    for devices in (8, 4, 1):
        mesh = _mesh(devices)
        with Checkpoints(tmp_path, keep=2) as checkpoints:
            step, items = checkpoints.restore_latest(
                {"state": _template(state, mesh), "data": {"batches": 0}}
            )
        assert step == 3
        assert items["data"]["batches"] == 7
        assert isinstance(items["data"]["batches"], np.ndarray)
        _assert_same(items["state"], state)
        kernel = items["state"].params["dense"]["kernel"]
        assert kernel.sharding == NamedSharding(mesh, P("data"))


def test_restores_some_of_the_items(tmp_path):
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, {"state": _state(1), "queue": {"filled": jnp.arange(4)}})
    with Checkpoints(tmp_path, keep=1, read_only=True) as checkpoints:
        with pytest.raises(RuntimeError, match="opened to be read, not to save step 2"):
            checkpoints.save(2, {"state": {"x": jnp.ones(1)}})
        _, items = checkpoints.restore_latest({"queue": {"filled": jnp.zeros(4, jnp.int32)}})
    assert items.keys() == {"queue"}
    np.testing.assert_array_equal(items["queue"]["filled"], np.arange(4))


def test_donating_or_changing_after_a_save_leaves_it_as_it_was(tmp_path):
    update = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    tree = {"w": jnp.zeros((512, 512)), "v": jnp.ones(8)}
    host = {"batches": np.array(0)}
    with Checkpoints(tmp_path, keep=9) as checkpoints:
        for step in range(4):
            checkpoints.save(step, {"state": tree, "data": host})
            tree = update(tree)
            host["batches"] += 1
        checkpoints.wait()
        for step in reversed(range(4)):
            found, items = checkpoints.restore_latest({"state": tree, "data": host})
            assert found == step
            np.testing.assert_array_equal(items["state"]["w"], np.full((512, 512), step))
            assert items["data"]["batches"] == step
            shutil.rmtree(tmp_path / str(step))


def test_keeps_the_newest_and_saves_a_step_once(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (1, 2, 3, 3):
            checkpoints.save(step, {"state": {"x": jnp.full(2, step)}})
        assert checkpoints.wait()
        assert checkpoints.steps() == [2, 3]
        assert checkpoints.restore_latest({"state": {"x": jnp.zeros(2, jnp.int32)}})[0] == 3


def test_multiples_of_a_number_of_steps_are_kept_for_ever(tmp_path):
    for steps in (range(1, 6), range(6, 10)):  # over a resume
        with Checkpoints(tmp_path, keep=2, keep_every=4) as checkpoints:
            for step in steps:
                checkpoints.save(step, {"state": {"x": jnp.full(2, step)}})
    assert checkpoints.steps() == [4, 8, 9]
    with Checkpoints(tmp_path, keep=1) as checkpoints:  # the rule may change
        checkpoints.save(10, {"state": {"x": jnp.full(2, 10)}})
    assert checkpoints.steps() == [10]


def test_one_step_is_restored_by_its_number(tmp_path):
    template = {"state": {"x": jnp.zeros(2)}}
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        with pytest.raises(UserError, match="has no checkpoint of step 2; there are none"):
            checkpoints.restore_step(2, template)
        for step in (2, 4, 6):
            checkpoints.save(step, {"state": {"x": jnp.full(2, 1.0 * step)}})
        items = checkpoints.restore_step(4, template)
        np.testing.assert_array_equal(items["state"]["x"], [4, 4])
        with pytest.raises(UserError, match="has no checkpoint of step 5; there are 2, 4, 6"):
            checkpoints.restore_step(5, template)
        with pytest.raises(UserError, match="holds x as float32"):
            checkpoints.restore_step(4, {"state": {"x": jnp.zeros(3)}})
        _truncate(tmp_path / "4" / "state" / "manifest.ocdbt")
        with pytest.raises(UserError, match=r"4 is damaged .*; other steps: 2, 6"):
            checkpoints.restore_step(4, template)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(data)


def _zero_a_block(path: Path) -> None:
    data = path.read_bytes()
    middle = len(data) // 2
    path.write_bytes(data[: middle - 64] + bytes(128) + data[middle + 64 :])


@pytest.mark.parametrize("damage", [_truncate, _flip_a_bit, _zero_a_block, os.remove])
def test_a_damaged_step_is_left_for_the_one_before(tmp_path, messages, damage):
    states = {step: _state(step) for step in (1, 2)}
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        for step, state in states.items():
            checkpoints.save(step, {"state": state})
    damage(_largest_file(tmp_path / "2"))
    template = {"state": _template(states[1], _mesh(1))}
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        step, items = checkpoints.restore_latest(template)
        assert step == 1
        _assert_same(items["state"], states[1])
        assert any("STEP 2 IS DAMAGED" in m and str(tmp_path / "2") in m for m in messages)
        assert checkpoints.steps() == [1]
        assert (tmp_path / "2").is_dir()  # a reader moves nothing
        checkpoints.save(2, {"state": states[2]})
        step, items = checkpoints.restore_latest(template)
        assert step == 2
        _assert_same(items["state"], states[2])
    assert (tmp_path / "damaged" / "2").is_dir()


@pytest.mark.parametrize("name", ["state/_METADATA", "checksums/metadata", "state/manifest.ocdbt"])
def test_damage_to_a_small_file_is_damage(tmp_path, name):
    template = {"state": {"x": jnp.zeros(3)}}
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, {"state": {"x": jnp.full(3, 1.0 * step)}})
        checkpoints.wait()
        _truncate(tmp_path / "2" / name)
        step, items = checkpoints.restore_latest(template)
    assert step == 1
    np.testing.assert_array_equal(items["state"]["x"], np.ones(3))


def _save_two(folder: Path) -> dict:
    """Saves steps 1 and 2 there; returns the states by step."""
    states = {step: _state(step) for step in (1, 2)}
    with Checkpoints(folder, keep=3) as checkpoints:
        for step, state in states.items():
            checkpoints.save(step, {"state": state})
    return states


def test_a_copy_on_another_disk_is_read(tmp_path):
    """cp -r keeps neither times nor inodes, and another file system has other blocks."""
    states = _save_two(tmp_path / "run")
    other = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else tmp_path
    with tempfile.TemporaryDirectory(dir=other) as copy:
        subprocess.run(["cp", "-r", tmp_path / "run", copy], check=True)
        shutil.rmtree(tmp_path / "run")
        with Checkpoints(Path(copy) / "run", keep=3) as checkpoints:
            step, items = checkpoints.restore_latest({"state": _template(states[1], _mesh(1))})
            assert step == 2
            _assert_same(items["state"], states[2])
            checkpoints.save(3, {"state": states[1]})
            checkpoints.wait()
            assert checkpoints.steps() == [1, 2, 3]


@pytest.mark.parametrize("copied", [0, 1, "half"])
def test_a_copy_that_ended_in_the_newest_step_is_read_from_the_one_before(tmp_path, copied):
    states = _save_two(tmp_path / "run")
    files = sorted(path for path in (tmp_path / "run" / "2").rglob("*") if path.is_file())
    for path in files[len(files) // 2 if copied == "half" else copied :]:
        path.unlink()
    with Checkpoints(tmp_path / "run", keep=3) as checkpoints:
        step, items = checkpoints.restore_latest({"state": _template(states[1], _mesh(1))})
        assert step == 1
        _assert_same(items["state"], states[1])
        checkpoints.save(2, {"state": states[2]})
        step, _ = checkpoints.restore_latest({"state": _template(states[1], _mesh(1))})
        assert step == 2


def test_a_step_that_was_being_written_when_it_was_copied_does_not_count(tmp_path):
    states = _save_two(tmp_path / "run")
    (tmp_path / "run" / "2").rename(tmp_path / "run" / "2.orbax-checkpoint-tmp")
    with Checkpoints(tmp_path / "run", keep=3) as checkpoints:
        step, items = checkpoints.restore_latest({"state": _template(states[1], _mesh(1))})
        assert step == 1
        _assert_same(items["state"], states[1])


def test_no_step_that_can_be_read_is_an_error_and_moves_nothing(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        checkpoints.save(5, {"state": {"x": jnp.ones(3)}})
        checkpoints.wait()
        _truncate(_largest_file(tmp_path / "5"))
        _truncate(tmp_path / "5" / "state" / "manifest.ocdbt")
        with pytest.raises(UserError, match=r"no checkpoint .* can be read \(step 5"):
            checkpoints.restore_latest({"state": {"x": jnp.zeros(3)}})
        assert checkpoints.steps() == [5]


@pytest.fixture
def reads(monkeypatch):
    """A list of errors that the next reads of an item raise, one each; None lets a read pass."""
    errors, restore = [], ocp.StandardCheckpointHandler.restore

    def failing(*arguments, **named):
        if error := errors.pop(0) if errors else None:
            raise error
        return restore(*arguments, **named)

    monkeypatch.setattr(ocp.StandardCheckpointHandler, "restore", failing)
    return errors


_AT_ONCE = (0.0, 0.0, 0.0)  # three tries more, without a pause


_STALE = OSError(errno.ESTALE, "Stale file handle")
_IN_WORDS = ValueError("INTERNAL: Error reading file: [OS error 5: EIO Input/output error]")


@pytest.mark.parametrize(
    ("failures", "step", "damaged"),
    [
        ([_STALE, _IN_WORDS, None], 2, False),  # the disk answers again
        ([_STALE, _STALE, _STALE, _STALE, None], 1, True),  # for this step it never does
        ([ValueError("no such chunk"), None], 1, True),
    ],
)
def test_a_disk_that_fails_for_a_moment_damages_nothing(tmp_path, reads, failures, step, damaged):
    template = {"state": {"x": jnp.zeros(3)}}
    with Checkpoints(tmp_path, keep=3, retry_seconds=_AT_ONCE) as checkpoints:
        for i in (1, 2):
            checkpoints.save(i, {"state": {"x": jnp.ones(3)}})
        checkpoints.wait()
        reads += failures
        assert checkpoints.restore_latest(template)[0] == step
        checkpoints.save(3, {"state": {"x": jnp.ones(3)}})
    assert (tmp_path / "damaged" / "2").is_dir() == damaged


def test_a_disk_that_does_not_answer_is_no_mistake_of_the_user(tmp_path, reads):
    template = {"state": {"x": jnp.zeros(3)}}
    with Checkpoints(tmp_path, keep=3, retry_seconds=_AT_ONCE) as checkpoints:
        for i in (1, 2):
            checkpoints.save(i, {"state": {"x": jnp.ones(3)}})
        checkpoints.wait()
        reads += [_STALE] * 8
        with pytest.raises(TransientError, match="when the disk answers"):
            checkpoints.restore_latest(template)
        reads += [_STALE] * 4
        with pytest.raises(TransientError, match=r"2 cannot be read .*; other steps: 1"):
            checkpoints.restore_step(2, template)
        assert checkpoints.restore_latest(template)[0] == 2


def test_steps_that_are_deleted_while_they_are_read_are_ignored(tmp_path, monkeypatch):
    """One program samples from the newest step of a run, while the run goes on."""
    template = {"state": {"x": jnp.zeros(3)}}
    restore, gone = ocp.StandardCheckpointHandler.restore, []

    def deleted(self, directory, *arguments, **named):
        if not gone:
            gone.append(Path(directory))
            writer.save(3, {"state": {"x": jnp.ones(3)}})
            writer.wait()
        return restore(self, directory, *arguments, **named)

    with Checkpoints(tmp_path, keep=1) as writer:
        writer.save(2, {"state": {"x": jnp.ones(3)}})
        writer.wait()
        monkeypatch.setattr(ocp.StandardCheckpointHandler, "restore", deleted)
        reader = Checkpoints(tmp_path, keep=1, read_only=True)
        assert reader.restore_latest(template)[0] == 3
    assert gone == [tmp_path / "2" / "state"]


def test_damage_that_cannot_be_set_aside_is_a_failed_save(tmp_path, messages, monkeypatch):
    template = {"state": {"x": jnp.zeros(3)}}
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        for i in (1, 2):
            checkpoints.save(i, {"state": {"x": jnp.ones(3)}})
        checkpoints.wait()
        os.remove(tmp_path / "2" / "state" / "manifest.ocdbt")
        assert checkpoints.restore_latest(template)[0] == 1
        with monkeypatch.context() as patch:

            def full(*arguments):
                raise OSError(errno.ENOSPC, "No space left on device")

            patch.setattr(os, "replace", full)
            checkpoints.save(2, {"state": {"x": jnp.ones(3)}})
        assert any("STEP 2 WAS NOT SAVED" in m and "No space left" in m for m in messages)
        checkpoints.save(2, {"state": {"x": jnp.ones(3)}})
        assert checkpoints.wait()
        assert checkpoints.restore_latest(template)[0] == 2


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            {"x": jnp.zeros((2, 3), jnp.bfloat16), "y": jnp.zeros(2)},
            r"x as float32\[2, 3\].*bfloat16",
        ),
        ({"x": jnp.zeros((3, 2)), "y": jnp.zeros(2)}, r"x as float32\[2, 3\].*float32\[3, 2\]"),
        ({"x": jnp.zeros((2, 3))}, "has y, which this run lacks"),
        ({"x": jnp.zeros((2, 3)), "y": jnp.zeros(2), "z": jnp.zeros(1)}, "lacks z, which this run"),
    ],
)
def test_another_tree_is_an_error_that_names_the_array(tmp_path, template, message):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        checkpoints.save(1, {"state": {"x": jnp.ones((2, 3)), "y": jnp.ones(2)}})
        with pytest.raises(UserError, match=message):
            checkpoints.restore_latest({"state": template})
        assert checkpoints.steps() == [1]


def test_what_cannot_be_saved_is_refused(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        with pytest.raises(ValueError, match="state/key is a PRNG key"):
            checkpoints.save(1, {"state": {"key": jax.random.key(0)}})
        with pytest.raises(ValueError, match="'state' holds no array"):
            checkpoints.save(1, {"state": {}})
        with pytest.raises(ValueError, match="the name is taken"):
            checkpoints.save(1, {"checksums": {"x": jnp.ones(1)}})
        with pytest.raises(ValueError, match="state/x has no sharding"):
            checkpoints.restore_latest({"state": {"x": jax.ShapeDtypeStruct((1,), jnp.float32)}})


def test_a_failed_save_is_loud_and_the_next_one_works(tmp_path, messages, monkeypatch):
    template = {"state": {"x": jnp.zeros(2)}}
    with Checkpoints(tmp_path, keep=3, max_failures=2) as checkpoints:
        checkpoints.save(1, {"state": {"x": jnp.full(2, 1.0)}})
        assert checkpoints.wait()

        def no_space(*args, **kwargs):
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr("orbax.checkpoint.CheckpointManager.save", no_space)
            checkpoints.save(2, {"state": {"x": jnp.full(2, 2.0)}})
        assert not checkpoints.wait()
        assert any("STEP 2 WAS NOT SAVED" in m and "No space left" in m for m in messages)
        assert checkpoints.restore_latest(template)[0] == 1
        checkpoints.save(3, {"state": {"x": jnp.full(2, 3.0)}})
        assert checkpoints.wait()
        with monkeypatch.context() as patch:
            patch.setattr("orbax.checkpoint.CheckpointManager.save", no_space)
            checkpoints.save(4, {"state": {"x": jnp.full(2, 4.0)}})
            with pytest.raises(UserError, match=r"2 checkpoints in a row .* No space left"):
                checkpoints.save(5, {"state": {"x": jnp.full(2, 5.0)}})
    assert checkpoints.restore_latest(template)[0] == 3


@pytest.fixture
def small_files():
    """Files cannot grow beyond 100 kB, as on a full disk: the writing thread itself fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, previous)


def test_files_that_do_not_fit_are_a_failed_save(tmp_path, messages, small_files):
    large = jax.random.normal(jax.random.key(0), (256, 256))
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        checkpoints.save(1, {"state": {"x": large[:8, :8]}})
        checkpoints.save(2, {"state": {"x": large}})
        assert not checkpoints.wait()
        assert any("STEP 2 WAS NOT SAVED" in m for m in messages)
        assert checkpoints.steps() == [1]
        small_files()
        checkpoints.save(3, {"state": {"x": large}})
        assert checkpoints.wait()
        assert {p.name for p in tmp_path.iterdir()} == {"1", "3"}
        _, items = checkpoints.restore_latest({"state": {"x": jnp.zeros((256, 256))}})
    np.testing.assert_array_equal(items["state"]["x"], large)


_SAVES_FOREVER = """
import sys
import jax.numpy as jnp
from drifting_jax.workdir.checkpoint import Checkpoints

checkpoints = Checkpoints(sys.argv[1], keep=2)
for step in range(1, 10_000):
    x = {"x%d" % i: jnp.full((400, 400), step) + jnp.arange(400) for i in range(8)}
    checkpoints.save(step, {"state": x})
    print(step, flush=True)
"""


def test_kill_during_a_save_leaves_the_step_before_whole(tmp_path):
    template = {"state": {f"x{i}": jnp.zeros((400, 400), jnp.int32) for i in range(8)}}
    for round_, delay in enumerate((0.0, 0.01, 0.03)):
        directory = tmp_path / str(round_)
        with started(
            [sys.executable, "-c", _SAVES_FOREVER, str(directory)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=Path(__file__).parents[2],
            text=True,
            env=os.environ
            | {"XLA_FLAGS": quick_compiling.FLAGS, "JAX_NUMPY_RANK_PROMOTION": "allow"},
        ) as child:
            for line in child.stdout:
                if int(line) == 4:
                    break
            time.sleep(delay)
        with Checkpoints(directory, keep=2) as checkpoints:
            step, items = checkpoints.restore_latest(template)
            assert step >= 3
            for x in items["state"].values():
                expected = np.broadcast_to(step + np.arange(400), (400, 400))
                np.testing.assert_array_equal(x, expected)
            assert not (directory / "damaged").exists()
            checkpoints.save(step + 1, {"state": items["state"]})
            assert checkpoints.wait()
            leftovers = [p.name for p in directory.iterdir() if not p.name.isdigit()]
            assert not leftovers


def test_a_padded_item_is_cut_or_filled_with_zeros_on_another_mesh(tmp_path):
    """Ten classes are padded to 16 on eight devices and to 12 on four."""
    import functools

    from drifting_jax.distributed.meshes import make_mesh
    from drifting_jax.steps import sample_queue

    make = functools.partial(
        sample_queue.init, 10, per_class=2, unconditional=4, shape=(3,), dtype=np.uint8
    )
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, size=(24, 3)).astype(np.uint8)
    queue = sample_queue.push(make(mesh=make_mesh()), images, np.arange(24) % 10)
    drawn = sample_queue.draw(queue, jax.random.key(0), np.arange(10), 2)
    for step, devices in enumerate((8, 4, 1, 8)):
        template = make(mesh=make_mesh(devices))
        with Checkpoints(tmp_path, keep=5) as checkpoints:
            if step:
                _, items = checkpoints.restore_latest({"queue": template}, padded=("queue",))
                queue = items["queue"]
            checkpoints.save(step, {"queue": queue})
        assert queue.mesh.size == devices
        assert len(queue.by_class.filled) == -(-10 // devices) * devices
        again = sample_queue.draw(queue, jax.random.key(0), np.arange(10), 2)
        np.testing.assert_array_equal(again, drawn)
    with Checkpoints(tmp_path, keep=5) as checkpoints, pytest.raises(UserError, match="queue"):
        checkpoints.restore_latest({"queue": make(mesh=make_mesh(1))})
