"""What a compiled step needs: memory, operations, kernels, collectives, and the time of a step."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh

from drifting_jax.compiler import hlo, targets
from drifting_jax.compiler.collectives import Collective, collectives
from drifting_jax.compiler.roofline import roofline, tpu_seconds
from drifting_jax.errors import UserError
from drifting_jax.training.program import Program

# {words of a failure: the flag with which the same program compiles}.
_REMEDIES = {
    "'scf.": "--xla_disable_hlo_passes=triton-softmax-rewriter",
    "output tile sizes": "--xla_gpu_enable_triton_gemm=false",
}


def compiled_lines(found: Program, mesh: Mesh) -> list[str]:
    """Returns the lines on a step that is compiled for the devices of a mesh.

    Raises:
      UserError: the compiler fails, for another reason than too little memory.
    """
    device = _own_device(mesh)
    kind, capacity = device.device_kind, targets.memory_of(device)
    try:
        compiled = compile_for(device, found.lower())
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            used = re.search(r"Used [\d.]+\w+ of [\d.]+\w+ hbm", str(error))
            reason = used[0] if used else str(error).partition("\n")[0]
            return [f"compiled for {kind}: does NOT fit ({reason})"]
        raise UserError(_failure(kind, str(error))) from None
    memory, text = compiled.memory_analysis(), compiled.as_text()
    assert memory is not None and text is not None  # CPUs, GPUs and TPUs give both
    module = hlo.parse(text)
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    total = held + memory.temp_size_in_bytes
    note = " (by its compiler; others may need less in bfloat16)" if kind == "cpu" else ""
    lines = [
        f"compiled for {kind}, a device{note}:",
        _line("arguments and results", gigabytes(held)),
        _line("temporary", gigabytes(memory.temp_size_in_bytes)),
        _line("peak", gigabytes(total)),
        *_time_lines(compiled, module, device),
        f"  collectives: {_listed(collectives(module, mesh.size))}",
    ]
    if capacity:
        verdict = "fits" if total <= capacity else "does NOT fit"
        lines.append(f"  {verdict}: {total / 2**30:.2f} of {capacity / 2**30:.1f} GiB")
    if capacity and device.platform == "gpu":
        share = "JAX takes three quarters of a GPU's memory unless "
        lines[-1] += f" ({share}{targets.FRACTION} says otherwise)"
        if not targets.is_present(device):
            lines.append(
                "  not included: workspaces of convolutions, and what the GPU itself would choose "
                "by trying kernels out"
            )
    return lines


def _own_device(mesh: Mesh) -> jax.Device:
    """A device of this process, which alone can be asked; the first of those that are not there."""
    devices = list(mesh.devices.flat)
    return next((x for x in devices if x.process_index == jax.process_index()), devices[0])


def compile_for(device: jax.Device, lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """Compiles a program, for a GPU that is not there with the options that this needs."""
    if targets.is_present(device):
        return lowered.compile()
    # JAX cannot load a kept program for a device that is not there.
    before = getattr(jax.config, "jax_enable_compilation_cache")  # noqa: B009 (a type checker)
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    try:
        options = targets.GPU_OPTIONS if device.platform == "gpu" else None
        return lowered.compile(compiler_options=options)
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def gigabytes(count: int) -> str:
    """A number of bytes in GiB, as a column."""
    return f"{count / 2**30:10.3f} GiB"


def _line(name: str, value: str) -> str:
    return f"  {name:<24}{value}"


def _time_lines(compiled: jax.stages.Compiled, module: hlo.Module, device: jax.Device) -> list[str]:
    """Returns the lines on operations and time, loops with all their passes where that is known."""
    costs: Any = compiled.cost_analysis() or {}
    gpu = targets.gpu_of(device)
    if gpu is not None:
        found = roofline(module, gpu)
        return [
            _line("floating-point work", f"{found.flops / 1e12:10.3f} TFLOP (products alone)"),
            _line("memory traffic", f"{found.num_bytes / 1e9:10.3f} GB"),
            _line("kernels", f"{found.kernels:10,}"),
            _line("roofline estimate", f"{_time(found.bound)} a step at the limits of the device"),
            _line("", f"{_time(found.plausible)} with usual kernels and 3 µs for each launch"),
        ]
    flops = costs.get("flops", 0.0)
    lines = [_line("floating-point work", f"{flops / 1e12:10.3f} TFLOP (loops counted once)")]
    if "optimal_seconds" in costs:
        seconds = tpu_seconds(module, costs["optimal_seconds"])
        lines.append(_line("compiler's estimate", f"{_time(seconds)} a step"))
    return lines


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:10.3f} ms" if seconds < 1 else f"{seconds:10.3f} s "


def _failure(kind: str, error: str) -> str:
    """Returns one line on a failure of the compiler, with the flag to try if one is known."""
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    text = f"the compiler for {kind} failed: {lines[0][:300] if lines else 'no reason given'}"
    for sign, flag in _REMEDIES.items():
        if sign in error:
            return f"{text}; try XLA_FLAGS={flag}"
    return text


def _listed(found: Sequence[Collective]) -> str:
    """Returns the number of collectives of each name and the bytes that they move together."""
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for one in found:
        counts[one.name] += one.times
        sizes[one.name] += one.times * one.size
    words = [f"{counts[name]:,} {name} of {sizes[name] / 1e6:.1f} MB" for name in sorted(counts)]
    return ", ".join(words) or "none"
