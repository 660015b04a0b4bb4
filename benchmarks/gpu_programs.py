"""Compiles the step of every config for GPUs that this machine lacks; writes and prints a table.

    pip install -e ".[gpu-compile]"
    python benchmarks/gpu_programs.py --results=docs/gpu_programs.json

A program that stands in the results is not compiled again, so the script goes on where it was
ended. A "note" that is written into a row stands behind the name of its GPU in the table. The times
are estimates: the limits of the device ("bound"), and usual kernels with 3 µs for each launch
("plausible").
"""

import json
import os
import time
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
from absl import app, flags

from drifting_jax.compiler import hlo, targets
from drifting_jax.compiler.roofline import roofline
from drifting_jax.config import file_beside, resolve
from drifting_jax.training import build, compiled_report, dry_run

CONFIGS = Path(__file__).parents[1] / "configs"
NAMES = (
    "toy2d", "digits", "mnist", "cifar10", "images", "images:small", "imagenet_latent:ablation",
    "mae_latent:256", "mae_pixel:256", "imagenet_latent:B", "imagenet_latent:L", "mae_latent:640",
    "mae_pixel:640", "imagenet_pixel:B", "imagenet_pixel:L", "fashion_mnist", "fashion_mnist:unet",
    "images:128", "cifar10:unconditional", "cifar10:conditional", "cifar10:small",
    "imagenet64_latent", "imagenet_latent:one_gpu", "imagenet512_latent:B", "imagenet512_latent:L",
)  # fmt: skip
_RESULTS = flags.DEFINE_string("results", "docs/gpu_programs.json", "Read, and written anew.")
_GPUS = flags.DEFINE_list("gpus", ["h100", "h200", "a100", "rtx4090"], "Topologies.")
_NAMES = flags.DEFINE_list("configs", list(NAMES), "Configs with variants.")


def measure(full: str, topology: str) -> dict:
    """Compiles the step of a config for a GPU; returns the row of the table."""
    name, _, variant = full.partition(":")
    module = file_beside(CONFIGS / "any.py", f"{name}.py")
    config = resolve(module.get_config(variant) if variant else module.get_config())
    mesh = build.make_mesh(config, devices=targets.devices_of(topology))
    device = mesh.devices.flat[0]
    found = dry_run.program(config, mesh)
    began = time.time()
    compiled = compiled_report.compile_for(device, found.lower())
    seconds = time.time() - began
    memory, gpu = compiled.memory_analysis(), targets.gpu_of(device)
    peak = (
        memory.argument_size_in_bytes + memory.output_size_in_bytes
        - memory.alias_size_in_bytes + memory.temp_size_in_bytes
    )  # fmt: skip
    sums = roofline(hlo.parse(compiled.as_text()), gpu)
    return {
        "jax": jax.__version__,
        "microbatches": found.microbatches,
        "keep_maps": found.keep_maps,
        "peak_gib": round(peak / 2**30, 2),
        "usable_gib": round(targets.memory_of(device) / 2**30, 1),
        "kernels": sums.kernels,
        "tflop": round(sums.flops / 1e12, 3),
        "gigabytes": round(sums.num_bytes / 1e9, 1),
        "bound_ms": round(sums.bound * 1e3, 3),
        "plausible_ms": round(sums.plausible * 1e3, 3),
        "compile_seconds": round(seconds),
    }


def table(results: dict) -> str:
    """The results as a Markdown table."""
    lines = [
        "| config | GPU | microbatches | peak GiB | kernels | bound | plausible | verdict |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in NAMES:
        for key, row in results.items():
            if key.partition(" ")[0] != name:
                continue
            fits = row["peak_gib"] <= row["usable_gib"]
            gpu = key.partition(" ")[2] + row.get("note", "")
            lines.append(
                f"| `{name}` | {gpu} | {row['microbatches']} | "
                f"{row['peak_gib']:.2f} | {row['kernels']:,} | {milliseconds(row['bound_ms'])} | "
                f"{milliseconds(row['plausible_ms'])} | "
                f"{'fits' if fits else 'too large for'} {row['usable_gib']} |"
            )
    return "\n".join(lines)


def milliseconds(value: float) -> str:
    """A time with three digits, in ms or s."""
    return f"{value / 1e3:.3g} s" if value >= 1e3 else f"{value:.3g} ms"


def main(_) -> None:
    """Compiles what the results lack."""
    path = Path(_RESULTS.value)
    results = json.loads(path.read_text()) if path.exists() else {}
    for name in _NAMES.value:
        for gpu in _GPUS.value:
            if f"{name} {gpu}" not in results:
                results[f"{name} {gpu}"] = measure(name, gpu)
                path.write_text(json.dumps(results, indent=1) + "\n")
                print(name, gpu, results[f"{name} {gpu}"], flush=True)
    print(table(results))


if __name__ == "__main__":
    app.run(main)
