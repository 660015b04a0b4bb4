"""Kinds of GPUs, as XLA's compiler and the roofline need to know them.

Numbers are the makers' public ones: dense products without sparsity. `watts` is the most that a
card draws with its maker's settings (board power, or thermal design power).
"""

from __future__ import annotations

import dataclasses


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
