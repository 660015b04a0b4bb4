"""Devices to compile for: their descriptions and their memory."""

import types

import jax
import pytest

from drifting_jax.compiler import targets
from drifting_jax.compiler.gpus import GPUS
from drifting_jax.errors import UserError

FIELDS = (  # of XLA's GpuTargetConfigProto; it reads a text in which one is missing
    *("threads_per_block_limit", "threads_per_warp", "shared_memory_per_block"),
    *("shared_memory_per_core", "threads_per_core_limit", "core_count", "fpus_per_core"),
    *("block_dim_limit_x", "block_dim_limit_y", "block_dim_limit_z", "memory_bandwidth"),
    *("l2_cache_size", "clock_rate_ghz", "device_memory_size", "shared_memory_per_block_optin"),
    *("cuda_compute_capability", "registers_per_core_limit", "registers_per_block_limit"),
    *("platform_name", "dnn_version_info", "runtime_version", "device_description_str"),
)


def absent(kind):
    """A device that exists for the compiler alone: it knows nothing of its memory."""

    def memory_stats():
        raise RuntimeError("not addressable")

    return types.SimpleNamespace(device_kind=kind, platform="gpu", memory_stats=memory_stats)


@pytest.mark.parametrize("name", GPUS)
def test_a_description_has_all_fields(name):
    gpu = GPUS[name]
    text = gpu.description()
    for field in FIELDS:
        assert text.count(f"{field}:") + text.count(f"{field} {{") == 1, field
    assert "None" not in text
    # Float32 units alone reach the float32 peak: two operations a clock each.
    assert gpu.f32 == pytest.approx(2 * gpu.cores * gpu.fpus * gpu.clock * 1e9, rel=0.05)
    assert gpu.bf16 >= gpu.tf32 >= gpu.f32


def test_kinds_are_all_different():
    assert len({gpu.kind for gpu in GPUS.values()}) == len(GPUS)
    assert targets.gpu_of(absent("NVIDIA L4")) is GPUS["l4"]


def test_the_memory_is_the_share_that_jax_takes(monkeypatch):
    monkeypatch.delenv(targets.FRACTION, raising=False)
    h100 = absent(GPUS["h100"].kind)
    assert targets.memory_of(h100) == int(0.75 * 84942979072)
    monkeypatch.setenv(targets.FRACTION, "0.9")
    assert targets.memory_of(h100) == int(0.9 * 84942979072)
    monkeypatch.setenv(targets.FRACTION, "")
    assert targets.memory_of(h100) == int(0.75 * 84942979072)
    for wrong in ("much", "0", "1.5"):
        monkeypatch.setenv(targets.FRACTION, wrong)
        with pytest.raises(UserError, match=f"above 0 and at most 1; found '{wrong}'"):
            targets.memory_of(h100)
    assert targets.memory_of(absent("a GPU of tomorrow")) == 0
    assert targets.memory_of(jax.devices()[0]) == 0


@pytest.mark.parametrize("name", ["h100:x", "h100:0", "a100:2x2"])
def test_a_wrong_number_of_gpus(name):
    with pytest.raises(UserError, match=r"a number of GPUs after the colon, such as h100:8"):
        targets.devices_of(name)


def test_the_power_of_a_device():
    assert targets.board_power(absent(GPUS["rtx4090"].kind)) == 450
    assert targets.board_power(absent("TPU v4")) == 192
    for unknown in ("TPU v5 lite", "a GPU of tomorrow", "cpu"):
        assert targets.board_power(absent(unknown)) is None
