"""Devices to compile for: TPU slices and GPUs by name, their memory, their peaks, their power."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

import jax

from drifting_jax.compiler.gpus import GPUS, Gpu
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
