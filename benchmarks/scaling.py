"""Bytes that a device holds during a step of the full-size configs, without compiling anything.

    TPU_SKIP_MDS_QUERY=1 python benchmarks/scaling.py

A line for each config and slice, as `--dry_run` counts them: parameters, optimizer and averages
("state"), the queue, the frozen networks; in GiB. `--dry_run --topology=…` adds what the compiler
needs besides.
"""

import os
from pathlib import Path

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"  # stand for eight GPUs

import jax
from absl import app

from drifting_jax.compiler import targets
from drifting_jax.config import file_beside, resolve
from drifting_jax.distributed import meshes
from drifting_jax.training import build, dry_run

CONFIGS = Path(__file__).parents[1] / "configs"
NAMES = (
    "imagenet_latent:ablation", "imagenet_latent:B", "imagenet_latent:L", "imagenet_pixel:B",
    "imagenet_pixel:L", "mae_latent:256", "mae_latent:640", "mae_pixel:256", "mae_pixel:640",
)  # fmt: skip
SLICES = {
    "1 device": 1,
    "8 devices": 8,
    "v4-64": "v4:4x4x2",
    "v5e-64": "v5e:8x8",
    "v6e-128": "v6e:8x16",
}


def main(_) -> None:
    """Prints the table."""
    for full in NAMES:
        name, _, variant = full.partition(":")
        config = resolve(file_beside(CONFIGS / "any.py", f"{name}.py").get_config(variant))
        for slice_name, topology in SLICES.items():
            if isinstance(topology, int):
                devices = jax.local_devices(backend="cpu")[:topology]
            else:
                devices = targets.devices_of(topology)
            if len(devices) == 128 and config.train.labels_per_step == 64:
                with config.unlocked():
                    config.mesh.data = 64  # two devices a row
            program = dry_run.program(config, build.make_mesh(config, devices=devices))
            held = {
                k: meshes.bytes_per_device(v) / 2**30 for k, v in dry_run.arguments(program).items()
            }
            listed = ", ".join(f"{k} {v:.2f}" for k, v in held.items())
            print(
                f"{full} on {slice_name}: {listed}; together {sum(held.values()):.2f}; "
                f"{program.microbatches} microbatches",
                flush=True,
            )


if __name__ == "__main__":
    app.run(main)
