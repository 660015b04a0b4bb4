"""Devices to compile for: TPU slices and GPUs by name, their memory, their peaks, their power.

Numbers of GPUs are the makers' public ones: dense products without sparsity. `watts` is the most
that a card draws with its maker's settings (board power, or thermal design power).
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence
from typing import Any

import jax

from drifting_jax.errors import UserError

# GiB of a chip's memory, by JAX's name of its kind.
_TPU_MEMORY = {"TPU v4": 32, "TPU v5 lite": 16, "TPU v5": 95, "TPU v5p": 95, "TPU v6 lite": 32}
# Peak operations a second of a chip's products in bfloat16.
_TPU_PEAKS = {
    "TPU v4": 275e12, "TPU v5 lite": 197e12, "TPU v5": 459e12, "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
}  # fmt: skip
# Watts of a chip at most: "Measured min/mean/max power 90/170/192 W", Google Cloud's page "TPU v4".
# Google has published none for v5e, v5p and v6e.
_TPU_WATTS = {"TPU v4": 192.0}
_DEFAULT_FRACTION = 0.75  # of a GPU's memory, which JAX takes
FRACTION = "XLA_PYTHON_CLIENT_MEM_FRACTION"

# What XLA needs where no GPU can try kernels out. Every config compiles with these.
GPU_OPTIONS: dict[str, str | bool] = {
    "xla_gpu_autotune_level": "0",
    "xla_gpu_enable_triton_gemm": False,
    "xla_backend_optimization_level": "0",  # three that compile faster, with the same memory
    "xla_llvm_disable_expensive_passes": True,
    "xla_gpu_disable_gpuasm_optimizations": True,
}


@dataclasses.dataclass(frozen=True)
class Gpu:
    """A kind of GPU.

    Attributes:
      kind: JAX's name of it.
      capability: compute capability, such as (9, 0).
      cores: multiprocessors; fpus: float32 units of each.
      clock: GHz.
      memory, bandwidth, cache: bytes, bytes a second, and bytes of the level-2 cache.
      shared, threads: bytes of shared memory, and threads, of a multiprocessor.
      bf16, tf32, f32: peak operations a second of products in this type; float16's is bf16's.
      watts: board power, at most.
    """

    kind: str
    capability: tuple[int, int]
    cores: int
    fpus: int
    clock: float
    memory: int
    bandwidth: float
    cache: int
    shared: int
    threads: int
    bf16: float
    tf32: float
    f32: float
    watts: float

    def description(self) -> str:
        """The text of XLA's `GpuTargetConfigProto`. It accepts a missing field without a word."""
        major, minor = self.capability
        reserved = 1024 if self.threads > 1024 else 0  # bytes of each block, from Ampere on
        return f"""
            gpu_device_info {{
              threads_per_block_limit: 1024
              threads_per_warp: 32
              shared_memory_per_block: 49152
              shared_memory_per_core: {self.shared}
              threads_per_core_limit: {self.threads}
              core_count: {self.cores}
              fpus_per_core: {self.fpus}
              block_dim_limit_x: 2147483647
              block_dim_limit_y: 65535
              block_dim_limit_z: 65535
              memory_bandwidth: {self.bandwidth:.0f}
              l2_cache_size: {self.cache}
              clock_rate_ghz: {self.clock}
              device_memory_size: {self.memory}
              shared_memory_per_block_optin: {self.shared - reserved}
              cuda_compute_capability {{ major: {major} minor: {minor} }}
              registers_per_core_limit: 65536
              registers_per_block_limit: 65536
            }}
            platform_name: "CUDA"
            dnn_version_info {{ major: 9 minor: 8 }}
            runtime_version {{ major: 12 minor: 9 patch: 0 }}
            device_description_str: "{self.kind}"
        """


GPUS = {
    "h100": Gpu(
        kind="NVIDIA H100 80GB HBM3",
        capability=(9, 0),
        cores=132,
        fpus=128,
        clock=1.98,
        memory=84942979072,
        bandwidth=3.35232e12,
        cache=52428800,
        shared=233472,
        threads=2048,
        bf16=989e12,
        tf32=494.7e12,
        f32=66.9e12,
        watts=700,  # NVIDIA H100 datasheet, SXM: TDP up to 700 W
    ),
}
GPUS |= {
    "h200": dataclasses.replace(
        GPUS["h100"],
        kind="NVIDIA H200",
        memory=151397597184,
        bandwidth=4.8e12,
        watts=700,  # NVIDIA H200 datasheet, SXM: TDP up to 700 W
    ),
    "b200": dataclasses.replace(
        GPUS["h100"],
        kind="NVIDIA B200",
        capability=(10, 0),
        cores=148,
        clock=1.965,
        memory=191503335424,
        bandwidth=8e12,
        cache=132644864,
        bf16=2250e12,
        tf32=1125e12,
        f32=74.4e12,
        watts=1000,  # NVIDIA Blackwell datasheet, HGX B200: TDP up to 1,000 W
    ),
    "a100": Gpu(
        kind="NVIDIA A100-SXM4-40GB",
        capability=(8, 0),
        cores=108,
        fpus=64,
        clock=1.41,
        memory=42331013120,
        bandwidth=1.5552e12,
        cache=41943040,
        shared=167936,
        threads=2048,
        bf16=312e12,
        tf32=156e12,
        f32=19.5e12,
        watts=400,  # NVIDIA A100 datasheet, SXM of 40 and of 80 GB: TDP 400 W
    ),
    "rtx4090": Gpu(
        kind="NVIDIA GeForce RTX 4090",
        capability=(8, 9),
        cores=128,
        fpus=128,
        clock=2.52,
        memory=25386352640,
        bandwidth=1.008096e12,
        cache=75497472,
        shared=102400,
        threads=1536,
        bf16=165.2e12,
        tf32=82.6e12,
        f32=82.6e12,
        watts=450,  # NVIDIA's page of the GeForce RTX 4090: total graphics power
    ),
    "t4": Gpu(
        kind="Tesla T4",
        capability=(7, 5),
        cores=40,
        fpus=64,
        clock=1.59,
        memory=15828320256,
        bandwidth=320.064e9,
        cache=4194304,
        shared=65536,
        threads=1024,
        bf16=8.1e12,  # it has no units for bfloat16
        tf32=8.1e12,
        f32=8.1e12,
        watts=70,  # NVIDIA T4 datasheet: 70 W, its maximum
    ),
}
GPUS |= {
    "a100-80": dataclasses.replace(
        GPUS["a100"], kind="NVIDIA A100-SXM4-80GB", memory=84974239744, bandwidth=2.039e12
    ),
    "l4": dataclasses.replace(
        GPUS["rtx4090"],
        kind="NVIDIA L4",
        cores=58,
        clock=2.04,
        memory=23609475072,
        bandwidth=300.096e9,
        cache=50331648,
        bf16=121e12,
        tf32=60e12,
        f32=30.3e12,
        watts=72,  # NVIDIA L4 datasheet: TDP 72 W
    ),
    "rtx3090": dataclasses.replace(
        GPUS["rtx4090"],
        kind="NVIDIA GeForce RTX 3090",
        capability=(8, 6),
        cores=82,
        clock=1.695,
        memory=25438126080,
        bandwidth=936.096e9,
        cache=6291456,
        bf16=71e12,
        tf32=35.6e12,
        f32=35.6e12,
        watts=350,  # NVIDIA's page of the GeForce RTX 3090: graphics card power
    ),
    "rtx5090": dataclasses.replace(
        GPUS["rtx4090"],
        kind="NVIDIA GeForce RTX 5090",
        capability=(12, 0),
        cores=170,
        clock=2.407,
        memory=33669906432,
        bandwidth=1.792e12,
        cache=100663296,
        bf16=209.5e12,
        tf32=104.8e12,
        f32=104.8e12,
        watts=575,  # NVIDIA's page of the GeForce RTX 5090: total graphics power
    ),
}


def gpu_of(device: jax.Device) -> Gpu | None:
    """The entry of `GPUS` of a device's kind; None if there is none."""
    return next((gpu for gpu in GPUS.values() if gpu.kind == device.device_kind), None)


def peak_flops(device: jax.Device) -> float | None:
    """Peak operations a second of a device's products in bfloat16; None for an unknown kind."""
    gpu = gpu_of(device)
    return gpu.bf16 if gpu else _TPU_PEAKS.get(device.device_kind)


def board_power(device: jax.Device) -> float | None:
    """Watts that a device of this kind draws at most; None if its maker does not say."""
    gpu = gpu_of(device)
    return gpu.watts if gpu else _TPU_WATTS.get(device.device_kind)


def is_present(device: jax.Device) -> bool:
    """Whether a device can run programs; others exist for the compiler alone."""
    return device in jax.devices()


def memory_of(device: jax.Device) -> int:
    """Bytes of a device's memory that a program may use; 0 if unknown.

    JAX takes three quarters of a GPU's memory, or the share of XLA_PYTHON_CLIENT_MEM_FRACTION.

    Raises:
      UserError: that variable is not a number above 0 and at most 1.
    """
    if device.device_kind in _TPU_MEMORY:
        return _TPU_MEMORY[device.device_kind] * 2**30
    if device.platform != "gpu":
        return 0
    if is_present(device):
        return (device.memory_stats() or {}).get("bytes_limit", 0)
    gpu = gpu_of(device)
    return int(gpu.memory * gpu_fraction()) if gpu else 0


def nominal_memory(device: jax.Device) -> int:
    """Bytes of the memory of a device's kind, whoever uses them; 0 if unknown."""
    gpu = gpu_of(device)
    return gpu.memory if gpu else _TPU_MEMORY.get(device.device_kind, 0) * 2**30


def gpu_fraction() -> float:
    """The share of a GPU's memory that JAX takes. Raises UserError for a variable that is none."""
    text = os.environ.get(FRACTION) or str(_DEFAULT_FRACTION)
    try:
        fraction = float(text)
    except ValueError:
        fraction = 0.0
    if not 0 < fraction <= 1:
        raise UserError(f"{FRACTION} must be a number above 0 and at most 1; found {text!r}")
    return fraction


def devices_of(topology: str) -> Sequence[jax.Device]:
    """Returns devices that exist for the compiler alone.

    Args:
      topology: a TPU slice such as "v5e:8x8", or one chip, "v5e:1x1"; or a GPU such as "h100", or
        several of one machine, such as "h100:8".

    Raises:
      UserError: the name is not known, or the compiler for it is not installed.
    """
    name, _, count = topology.partition(":")
    if name in GPUS:
        return _gpus(topology, GPUS[name], count or "1")
    return _tpus(topology)


def _gpus(topology: str, gpu: Gpu, count: str) -> Sequence[jax.Device]:
    if not re.fullmatch(r"[1-9]\d{0,2}", count):
        raise UserError(
            f"--topology={topology}: expected a number of GPUs after the colon, such as h100:8"
        )
    # Without this, the plugin would ask the driver, which this machine lacks.
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    try:
        from jax.experimental import topologies

        description = topologies.get_topology_desc(
            platform="cuda", target_config=gpu.description(), topology=f"1x1x{count}"
        )
        return description.devices
    except Exception as error:  # whatever a missing or older plugin raises
        raise UserError(
            f"--topology={topology} cannot be compiled for ({_first_line(error)}): it needs pip "
            'install "drifting_jax[gpu-compile]", or the extra cuda'
        ) from None


def _tpus(topology: str) -> Sequence[jax.Device]:
    # Without these, libtpu would look for a TPU.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # a compiler, used by no one alone
    try:
        from jax.experimental import topologies

        # A run sees the two cores of such a chip as one device; so must the compiler.
        options: dict[str, Any] = (
            {"chip_config_name": "megacore"} if topology.startswith(("v4:", "v5p:")) else {}
        )
        if re.fullmatch(r"\w+:1(x1)*", topology):  # a host with one chip; others have four
            options["chips_per_host_bounds"] = (1, 1, 1)
        return topologies.get_topology_desc(topology, "tpu", **options).devices
    except Exception as error:  # whatever libtpu raises for a name it does not know
        raise UserError(
            f"--topology={topology} cannot be compiled for ({_first_line(error)}): use a GPU "
            f"({', '.join(GPUS)}; several: h100:8), or a TPU slice such as v5e:8x8 or v4:2x2x1 "
            'with pip install "drifting_jax[tpu]"'
        ) from None


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200]
