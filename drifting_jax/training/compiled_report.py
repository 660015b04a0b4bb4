"""What a compiled step needs: memory, operations, kernels, collectives, and the time of a step."""

import dataclasses
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
# What a TPU's compiler says of a program that is too large.
_USED = re.compile(r"Used ([\d.]+)([KMG])\w* of [\d.]+\w+ hbm")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """What the compiler says of a step, for each device.

    Attributes:
      device: one of the devices.
      capacity: bytes that a program may use on it; 0 if unknown.
      held, temporary: bytes of arguments and results, and of what lies beside them meanwhile.
      peak: bytes in all; 0 if the compiler refused the program without a number.
      seconds: estimate of a step's time; None for a kind of device that has no estimate.
      lines: of the report, between the peak and the verdict.
      refusal: what the compiler said of a program that is too large for it; otherwise empty.
    """

    device: jax.Device
    capacity: int
    held: int = 0
    temporary: int = 0
    peak: int = 0
    seconds: float | None = None
    lines: tuple[str, ...] = ()
    refusal: str = ""

    @property
    def fits(self) -> bool | None:
        """Whether the step fits its device; None if the memory of that is not known."""
        if self.refusal:
            return False
        return self.peak <= self.capacity if self.capacity else None


def compile_step(found: Program, mesh: Mesh) -> CompiledStep:
    """Compiles a step for the devices of a mesh, and reads what that needs.

    Raises:
      UserError: the compiler fails, for another reason than too little memory.
    """
    device = _own_device(mesh)
    capacity = targets.memory_of(device)
    try:
        compiled = compile_for(device, found.lower())
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            used = _USED.search(str(error))
            reason = used[0] if used else str(error).partition("\n")[0]
            peak = int(float(used[1]) * _UNITS[used[2]]) if used else 0
            return CompiledStep(device, capacity, peak=peak, refusal=reason)
        raise UserError(_failure(device.device_kind, str(error))) from None
    memory, text = compiled.memory_analysis(), compiled.as_text()
    assert memory is not None and text is not None  # CPUs, GPUs and TPUs give both
    module = hlo.parse(text)
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    seconds, lines = _time(compiled, module, device)
    return CompiledStep(
        device=device,
        capacity=capacity,
        held=held,
        temporary=memory.temp_size_in_bytes,
        peak=held + memory.temp_size_in_bytes,
        seconds=seconds,
        lines=(*lines, f"  collectives: {_listed(collectives(module, mesh.size))}"),
    )


def compiled_lines(step: CompiledStep) -> list[str]:
    """Returns the lines of the report on a compiled step."""
    device, kind, capacity = step.device, step.device.device_kind, step.capacity
    if step.refusal:
        return [f"compiled for {kind}: does NOT fit ({step.refusal})"]
    note = " (by its compiler; others may need less in bfloat16)" if kind == "cpu" else ""
    lines = [
        f"compiled for {kind}, a device{note}:",
        report_line("arguments and results", gigabytes(step.held)),
        report_line("temporary", gigabytes(step.temporary)),
        report_line("peak", gigabytes(step.peak)),
        *step.lines,
    ]
    if capacity:
        verdict = "fits" if step.fits else "does NOT fit"
        lines.append(f"  {verdict}: {step.peak / 2**30:.2f} of {capacity / 2**30:.1f} GiB")
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


def report_line(name: str, value: str) -> str:
    """Returns a line of the report: a name and, in a column of its own, what it is."""
    return f"  {name:<24}{value}"


def _time(
    compiled: jax.stages.Compiled, module: hlo.Module, device: jax.Device
) -> tuple[float | None, list[str]]:
    """Returns the estimate of a step's seconds, and the lines on its operations and time."""
    costs: Any = compiled.cost_analysis() or {}
    gpu = targets.gpu_of(device)
    if gpu is not None:
        found = roofline(module, gpu)
        return found.plausible, [
            report_line(
                "floating-point work", f"{found.flops / 1e12:10.3f} TFLOP (products alone)"
            ),
            report_line("memory traffic", f"{found.num_bytes / 1e9:10.3f} GB"),
            report_line("kernels", f"{found.kernels:10,}"),
            report_line(
                "roofline estimate", f"{_in_words(found.bound)} a step at the device's limits"
            ),
            report_line(
                "", f"{_in_words(found.plausible)} with usual kernels and 3 µs for each launch"
            ),
        ]
    flops = costs.get("flops", 0.0)
    lines = [report_line("floating-point work", f"{flops / 1e12:10.3f} TFLOP (loops counted once)")]
    if "optimal_seconds" not in costs:
        return None, lines
    seconds = tpu_seconds(module, costs["optimal_seconds"])
    return seconds, [*lines, report_line("compiler's estimate", f"{_in_words(seconds)} a step")]


def _in_words(seconds: float) -> str:
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
