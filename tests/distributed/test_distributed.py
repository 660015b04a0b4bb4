"""Mesh, sharding rules, host arrays to and from global ones; one process against two.

Run as a program, this file is one process of two: see `worker`.
"""

import contextlib
import functools
import http.server
import logging
import os
import pathlib
import re
import socket
import subprocess
import sys
import threading

import child_processes
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quick_compiling
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from drifting_jax.distributed import meshes, processes, transfer
from drifting_jax.errors import UserError
from drifting_jax.steps import sample_queue


def test_mesh_sizes():
    for sizes, shape in (((), (8, 1)), ((-1, 2), (4, 2)), ((2, -1), (2, 4)), ((3, 1), (3, 1))):
        mesh = meshes.make_mesh(*sizes)
        assert mesh.devices.shape == shape
        assert mesh.axis_names == meshes.BATCH_AXES
        assert mesh.axis_types == (AxisType.Auto, AxisType.Auto)
    assert meshes.make_mesh(1).devices.tolist() == [[jax.devices()[0]]]


@pytest.mark.parametrize("sizes", [(-1, 3), (16, 1), (0, 1), (-1, -1), (-2, 1), (-1, 16)])
def test_mesh_error_says_what_fits(sizes):
    with pytest.raises(ValueError, match="with 8 devices, data x fsdp may be 8x1, 4x2, 2x4, 1x8"):
        meshes.make_mesh(*sizes)


def test_row_sharding():
    mesh = meshes.make_mesh(4, 2)
    sharding = functools.partial(meshes.row_sharding, mesh)
    assert sharding(16, 3).spec == P(("data", "fsdp"))
    assert sharding(4, 6).spec == P("data", "fsdp")
    assert sharding(3, 16).spec == P(None, ("data", "fsdp"))
    with pytest.raises(ValueError) as error:
        sharding(12, 5)
    assert "found 12 rows of 5; make the rows 8 or 16, or the samples per row 8," in str(
        error.value
    )
    assert "the rows 12 and the samples per row 4 or 6" in str(error.value)
    with pytest.raises(ValueError, match="or make the mesh data=4 x fsdp=2"):
        meshes.row_sharding(meshes.make_mesh(1, 8), 4, 4)
    for rows, per_row in ((8, 5), (16, 5), (3, 8), (12, 4), (12, 6)):
        sharding(rows, per_row)


def test_sharding_for_tree(caplog):
    mesh = meshes.make_mesh(2, 4)
    shapes = {
        "params": {
            "embed": jax.ShapeDtypeStruct((2048, 1024), jnp.float32),
            "block_0": {"kernel": jnp.zeros((12, 8)), "bias": jnp.zeros(8)},
            "odd": {"kernel": jnp.zeros((12, 6))},
            "large": {"kernel": jax.ShapeDtypeStruct((3, 4096, 1022), jnp.float32)},
            "plain": jnp.zeros((1023, 1025)),
            "wide": jnp.zeros((16, 3)),
        },
        "count": jnp.zeros(()),
    }
    rules = (
        ("block_0/kernel$", ("data", "fsdp")),
        ("kernel", (None, "fsdp")),
        ("wide", (("data", "fsdp"),)),
        ("bias|count", ("fsdp",)),
    )
    with caplog.at_level(logging.WARNING):
        found = meshes.sharding_for_tree(shapes, mesh, rules)
    specs = jax.tree.map(lambda sharding: sharding.spec, found)
    assert specs["params"]["block_0"] == {"kernel": P("data", "fsdp"), "bias": P("fsdp")}
    assert specs["params"]["odd"]["kernel"] == P(None, None)  # 6 does not split over 4
    assert specs["params"]["large"]["kernel"] == P(None, "fsdp", None)  # of more use there
    assert specs["params"]["wide"] == P(("data", "fsdp"))
    assert specs["count"] == P()
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 1 and "params/embed (2048, 1024)" in messages[0]  # plain is smaller
    caplog.clear()
    meshes.sharding_for_tree(shapes, meshes.make_mesh(8, 1), ())
    assert not caplog.records


@pytest.mark.parametrize(
    "rule", [("x", ("model",)), ("x", ("data", "data")), ("x", (("fsdp",), "fsdp")), ("(", ())]
)
def test_sharding_rules_are_checked(rule):
    with pytest.raises(ValueError, match="in a sharding rule"):
        meshes.sharding_for_tree({}, meshes.make_mesh(), [rule])


def test_large_parameters_are_listed_with_their_shardings():
    mesh = meshes.make_mesh(2, 4)
    shapes = {
        "embed": jax.ShapeDtypeStruct((2048, 1024), jnp.float32),
        "kernel": jax.ShapeDtypeStruct((3, 4096, 1024), jnp.bfloat16),
        "small": jax.ShapeDtypeStruct((1023, 1025), jnp.float32),
    }
    rules = [("kernel", (None, ("data", "fsdp"))), ("small", ("fsdp",))]
    shardings = meshes.sharding_for_tree(shapes, mesh, rules)
    lines = meshes.large_parameters({"params": shapes}, {"params": shardings})
    split, whole = str(P(None, ("data", "fsdp"), None)), str(P(None, None))
    assert [re.split(" {2,}", line) for line in lines] == [
        ["params/embed", "float32[2048, 1024]", whole, "8.0 MiB per device"],
        ["params/kernel", "bfloat16[3, 4096, 1024]", split, "3.0 MiB per device"],
    ]
    assert len(set(map(len, lines))) == 1  # in columns
    assert meshes.large_parameters({"bias": jnp.zeros(3)}, {"bias": meshes.replicated(mesh)}) == []


def test_init_sharded_has_the_same_numbers():
    mesh = meshes.make_mesh(4, 2)

    def init(key):
        return {"kernel": jax.random.normal(key, (8, 4)), "scale": jnp.ones(4)}

    shardings = functools.partial(
        meshes.sharding_for_tree, mesh=mesh, rules=[("kernel", (None, "fsdp"))]
    )
    tree = meshes.init_sharded(init, jax.random.key(0), shardings=shardings)
    assert tree["kernel"].sharding.shard_shape((8, 4)) == (8, 2)
    assert tree["scale"].sharding.is_equivalent_to(meshes.replicated(mesh), 1)
    plain = jax.jit(init)(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, transfer.fetch(tree), transfer.fetch(plain))


def test_global_batch_and_fetch():
    mesh = meshes.make_mesh(4, 2)
    local = {"image": np.arange(48, dtype=np.uint8).reshape(16, 3), "label": np.arange(16)}
    batch = transfer.global_batch(mesh, local)
    for name, leaf in batch.items():
        assert leaf.sharding.is_equivalent_to(meshes.batch_sharding(mesh), leaf.ndim)
        found = transfer.fetch(leaf)
        assert isinstance(found, np.ndarray)
        np.testing.assert_array_equal(found, local[name])
    assert batch["image"].dtype == np.uint8
    assert {shard.data.shape for shard in batch["image"].addressable_shards} == {(2, 3)}
    with pytest.raises(ValueError, match=r"8 devices, found 12 rows of 'x'.*make it 8 or 16"):
        transfer.global_batch(mesh, {"x": np.zeros(12)})
    with pytest.raises(ValueError, match=r"found 5 rows of 'batch'.*make it 8"):
        transfer.global_batch(mesh, np.zeros((5, 2)))


@pytest.fixture
def started(monkeypatch):
    """The arguments of each `jax.distributed.initialize`, in an environment without launchers."""
    calls = []
    monkeypatch.setattr(
        jax.distributed,
        "initialize",
        lambda heartbeat_timeout_seconds, **told: calls.append(
            told | ({} if heartbeat_timeout_seconds == 100 else {"lost": heartbeat_timeout_seconds})
        ),
    )
    for name in list(os.environ):
        if name.startswith(("SLURM_", "TPU_", "MEGASCALE_", "JAX_COORD", "JAX_NUM", "JAX_PROC")):
            monkeypatch.delenv(name)
    return calls


def test_one_process_starts_nothing(started, monkeypatch):
    processes.initialize()
    processes.initialize(num_processes=1)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "localhost")
    processes.initialize()
    monkeypatch.setenv("JAX_NUM_PROCESSES", "1")
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "a:1")
    processes.initialize()
    assert not started


def test_several_processes_are_told(started, monkeypatch):
    told = {"coordinator_address": "a:1", "num_processes": 2, "process_id": 0}
    processes.initialize(**told)
    for name, value in told.items():
        monkeypatch.setenv(f"JAX_{name.upper()}", str(value))
    processes.initialize()
    processes.initialize(process_id=1)  # an argument goes before the environment
    processes.initialize(heartbeat_timeout_seconds=30)
    assert started == [told, told, told | {"process_id": 1}, told | {"lost": 30}]
    monkeypatch.delenv("JAX_PROCESS_ID")
    with pytest.raises(
        ValueError, match="found no process_id; give --process_id or set JAX_PROCESS_ID"
    ):
        processes.initialize()


def test_variables_that_are_empty_count_as_not_set(started, monkeypatch):
    for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        monkeypatch.setenv(name, "")
    for name in ("SLURM_STEP_NUM_TASKS", "MEGASCALE_NUM_SLICES"):
        for value in ("", "abc", " 1 "):
            monkeypatch.setenv(name, value)
            processes.initialize()
    assert not started


@pytest.mark.parametrize("value", ["abc", "-1", "2.0"])
def test_a_variable_that_is_no_number_is_a_mistake(started, monkeypatch, value):
    monkeypatch.setenv("JAX_NUM_PROCESSES", value)
    with pytest.raises(UserError, match=f"expected JAX_NUM_PROCESSES .* found '{value}': correct"):
        processes.initialize()


@pytest.mark.parametrize("error", [KeyError("SLURM_LOCALID"), ValueError("SLURM_PROCID")])
def test_variables_of_a_cluster_that_are_incomplete_are_a_mistake(started, monkeypatch, error):
    def fail(**_):
        raise error

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    with pytest.raises(UserError, match=r"processes of this run \(.*SLURM_\w+'?\): a variable of"):
        processes.initialize()


@pytest.mark.parametrize("address", ["localhost", "localhost:abc", ":1", "localhost:65536"])
def test_an_address_without_a_port_is_a_mistake(started, address):
    """JAX would crash instead of raising an error."""
    with pytest.raises(ValueError, match=f"expected --coordinator=HOST:PORT .*{address}"):
        processes.initialize(coordinator_address=address, num_processes=2, process_id=0)
    assert not started


@pytest.mark.parametrize(
    "variable",
    [
        ("SLURM_STEP_NUM_TASKS", "4"),
        ("TPU_WORKER_HOSTNAMES", "a,b"),
        ("TPU_PROCESS_ADDRESSES", "a:1,b:1"),
        ("MEGASCALE_NUM_SLICES", "2"),
    ],
)
def test_several_processes_are_recognised(started, monkeypatch, variable):
    monkeypatch.setenv(*variable)
    processes.initialize()
    assert started == [dict.fromkeys(("coordinator_address", "num_processes", "process_id"))]


@pytest.mark.parametrize(("hosts", "calls"), [("a:1:ip,b:2:ip", 1), ("a", 0)])
def test_hosts_of_a_tpu_slice_are_asked_of_its_metadata(started, monkeypatch, hosts, calls):
    class Metadata(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            known = self.headers["Metadata-Flavor"] == "Google" and self.path.endswith(
                "/instance/attributes/worker-network-endpoints"
            )
            self.send_response(200 if known else 404)
            self.end_headers()
            self.wfile.write(hosts.encode())

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Metadata) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("GCE_METADATA_IP", f"127.0.0.1:{server.server_port}")
        monkeypatch.setenv("TPU_ML_PLATFORM", "JAX")
        processes.initialize()
        server.shutdown()
    processes.initialize()  # no server answers: there is one process
    assert len(started) == calls


def history(mesh: jax.sharding.Mesh) -> dict[str, np.ndarray]:
    """Does with the devices what a loop does, for this process's part; returns whole results."""
    index, count = jax.process_index(), jax.process_count()
    rng = np.random.default_rng(0)
    queue = sample_queue.init(
        10, per_class=4, unconditional=20, shape=(2, 3), dtype=np.uint8, mesh=mesh
    )
    for _ in range(3):
        image = rng.integers(0, 256, (16, 2, 3), dtype=np.uint8)
        label = rng.integers(-1, 10, 16).astype(np.int32)
        part = slice(index * 16 // count, (index + 1) * 16 // count)
        batch = transfer.global_batch(mesh, {"image": image[part], "label": label[part]})
        queue = sample_queue.push(queue, batch["image"], batch["label"])
    key = jax.random.key(1)
    results = {
        "batch": batch,
        "rows": sample_queue.draw(queue, key, np.arange(16) % 10, 4),
        "replicated": sample_queue.draw(queue, key, np.arange(3), 3),
        "unconditional": sample_queue.draw_unconditional(queue, key, np.arange(4), 2),
        "queue": (queue.by_class, queue.unconditional),
    }
    leaves = jax.tree_util.tree_leaves_with_path(transfer.fetch(results))
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def worker(path: str) -> None:
    """Is one process of two, which its environment names; writes its results to `path`."""
    processes.initialize()
    assert (jax.process_count(), jax.local_device_count(), jax.device_count()) == (2, 4, 8)
    try:
        meshes.make_mesh(4, 1)
    except ValueError:
        np.savez(path, **history(meshes.make_mesh(4, 2)))


@pytest.mark.slow
def test_two_processes_have_the_numbers_of_one(tmp_path, processes_can_meet):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    root = pathlib.Path(__file__).parents[2]
    env = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": quick_compiling.on_devices(4),
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": "2",
        "PYTHONPATH": os.pathsep.join([str(root), str(root / "tests" / "helpers")]),
    }
    paths = [tmp_path / f"{i}.npz" for i in range(2)]
    with contextlib.ExitStack() as stack:
        children = [
            stack.enter_context(
                child_processes.started(
                    [sys.executable, __file__, str(path)],
                    env=env | {"JAX_PROCESS_ID": str(i)},
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
            for i, path in enumerate(paths)
        ]
        expected = history(meshes.make_mesh(4, 2))
        for child in children:
            _, errors = child.communicate(timeout=120)
            assert child.returncode == 0, errors[-3000:]
    for path in paths:
        found = np.load(path)
        assert set(found) == set(expected)
        for name, value in expected.items():
            assert found[name].dtype == value.dtype
            np.testing.assert_array_equal(found[name], value, err_msg=name)


if __name__ == "__main__":
    worker(sys.argv[1])
