"""Kernels of a compiled program, their operations and bytes, and an estimate of their time.

The estimate of a kernel is the larger of its operations over the device's peak for their type and
its bytes over the bandwidth of its memory. Loops count with their passes. What a kernel reads
twice, waits for or launches is not in it; nor is it known what stays in caches between two kernels.
Collectives count at the speed of the memory, though links between devices are slower.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator

from drifting_jax.compiler.gpus import Gpu
from drifting_jax.compiler.hlo import Computation, Instruction, Module, Shape

# They launch nothing of their own.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "iota", "opt-barrier"),
    *("while", "call", "conditional", "async-start", "async-update"),
    *("after-all", "partition-id", "replica-id"),
}
_EXACT = ('"operand_precision":["HIGHEST"', "operand_precision={highest")  # of true float32
_PRODUCTS = {"forward": 2, "backward": 7}  # of Pallas' attention, with t x t entries or terms each
_LAUNCH_SECONDS = 3e-6
_SHARE_OF_PEAK, _SHARE_OF_BANDWIDTH = 0.65, 0.8  # assumed


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One kernel launch.

    Attributes:
      kind: "fusion", the target of a custom call, or the opcode.
      flops: operations of products and convolutions; all others are free beside their bytes.
      num_bytes: read and written.
      dtype: of the factors of its products, as in HLO.
      is_exact: whether its products are true float32 (Precision.HIGHEST), never TF32.
      times: how often it runs.
    """

    kind: str
    flops: float
    num_bytes: int
    dtype: str
    is_exact: bool
    times: int

    def seconds(self, gpu: Gpu, *, of_peak: float = 1.0, of_bandwidth: float = 1.0) -> float:
        """The estimate for one launch, at these shares of the device's limits."""
        if self.dtype in ("bf16", "f16"):
            peak = gpu.bf16
        elif self.dtype == "f32" and not self.is_exact:
            peak = gpu.tf32
        else:
            peak = gpu.f32
        return max(self.flops / (peak * of_peak), self.num_bytes / (gpu.bandwidth * of_bandwidth))


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Sums over the kernels of a program, loops with their passes.

    Attributes:
      kernels: launches.
      flops, num_bytes: of all kernels.
      bound: seconds at the device's peaks.
      plausible: seconds at 65% of the operations, 80% of the bandwidth, and 3 µs a launch.
    """

    kernels: int
    flops: float
    num_bytes: float
    bound: float
    plausible: float


def roofline(module: Module, gpu: Gpu) -> Roofline:
    """Returns the sums and estimates of a program that was compiled for a GPU."""
    found = list(kernels(module))
    return Roofline(
        kernels=sum(one.times for one in found),
        flops=sum(one.flops * one.times for one in found),
        num_bytes=sum(one.num_bytes * one.times for one in found),
        bound=sum(one.seconds(gpu) * one.times for one in found),
        plausible=sum(
            one.times
            * (
                one.seconds(gpu, of_peak=_SHARE_OF_PEAK, of_bandwidth=_SHARE_OF_BANDWIDTH)
                + _LAUNCH_SECONDS
            )
            for one in found
        ),
    )


def kernels(module: Module) -> Iterator[Kernel]:
    """The kernels of a program that was compiled for a GPU."""
    return (kernel for _, kernel in kernels_by_name(module))


def kernels_by_name(module: Module) -> Iterator[tuple[str, Kernel]]:
    """As `kernels`, each with the name of its operation, such as "jit(step)/DiT/block_0/…"."""
    for computation, one, times in module.executed():
        if one.opcode in _FREE or one.opcode.endswith("-done"):
            continue
        name = re.search(r'op_name="([^"]*)"', one.attributes)
        if one.opcode == "fusion":
            kernel = _fused(one, module.fusion(one), times)
        elif one.opcode == "custom-call":
            kernel = _custom(one, computation, times)
        else:
            kernel = Kernel(one.opcode, 0, _plain_bytes(one, computation), "", False, times)
        yield (name[1] if name else ""), kernel


def tpu_seconds(module: Module, optimal_seconds: float) -> float:
    """The TPU compiler's own estimate of a program, with loops counted by their passes.

    Args:
      module: compiled for a TPU.
      optimal_seconds: of `compiled.cost_analysis()`, in which loops count once.
    """
    once = often = 0
    for _, one, times in module.executed():
        cycles = re.search(r'"estimated_cycles":"(\d+)"', one.attributes)
        if cycles:
            once, often = once + int(cycles[1]), often + int(cycles[1]) * times
    return optimal_seconds * (often / once if once else 1.0)


def _plain_bytes(one: Instruction, computation: Computation) -> int:
    if one.opcode == "dynamic-update-slice":
        return 2 * computation[one.operands[1]].result_bytes
    if one.opcode in ("dynamic-slice", "slice", "gather"):
        return 2 * one.result_bytes
    return _operand_bytes(one, computation) + one.result_bytes


def _operand_bytes(one: Instruction, computation: Computation) -> int:
    return sum(computation[x].result_bytes for x in one.operands if x in computation)


def _custom(one: Instruction, computation: Computation, times: int) -> Kernel:
    """A call of a library: cuBLAS, cuDNN, a sort. Its workspace is no traffic."""
    match = re.search(r'custom_call_target="([^"]+)"', one.attributes)
    kind = match[1] if match else one.opcode
    operands = [shape for x in one.operands for shape in computation[x].results]
    result = one.results[0] if one.results else Shape("pred", (0,))
    flops, size = 0.0, sum(shape.num_bytes for shape in operands) + result.num_bytes
    if "cublas" in kind or "matmul" in kind:
        flops = _product(operands[0], one.numbers("lhs_contracting_dimensions"), result)
    elif "cudnn$conv" in kind:
        flops = _convolution(kind, one, operands, result)
    elif (name := re.search(r"/mha_(forward|backward)/", one.attributes)) is not None:
        b, t, heads, d = operands[0].dimensions
        flops = _PRODUCTS[name[1]] * 2.0 * b * heads * t * t * d
        size += sum(shape.num_bytes for shape in one.results[1:])
    exact = any(text in one.attributes for text in _EXACT)
    dtype = operands[0].dtype if flops else ""
    return Kernel(kind, flops, size, dtype, exact, times)


def _product(left: Shape, contracted: tuple[int, ...], result: Shape) -> float:
    return 2.0 * math.prod(left.dimensions[i] for i in contracted) * result.size


def _convolution(kind: str, one: Instruction, operands: list[Shape], result: Shape) -> float:
    """Twice the outputs times the kernel's entries for each of them."""
    labels = re.search(r"dim_labels=\w+_(\w+)->", one.attributes)
    if "BackwardFilter" in kind:
        kernel, outputs = result, operands[1]
    elif "BackwardInput" in kind:
        kernel, outputs = operands[1], operands[0]
    else:
        kernel, outputs = operands[1], result
    out_channels = kernel.dimensions[labels[1].index("o")] if labels else 1
    return 2.0 * outputs.size * kernel.size / max(out_channels, 1)


def _fused(one: Instruction, body: Computation, times: int) -> Kernel:
    flops, dtype, exact = 0.0, "", False
    for inner in body.values():
        if inner.opcode == "dot":
            left = body[inner.operands[0]].results[0]
            flops += _product(left, inner.numbers("lhs_contracting_dims"), inner.results[0])
            dtype = left.dtype
            exact = any(text in inner.attributes for text in _EXACT)
    read = sum(_read(x, body) for x in body.values() if x.opcode == "parameter")
    root = next(x for x in body.values() if x.is_root)
    roots = [body[x] for x in root.operands] if root.opcode == "tuple" else [root]
    return Kernel(
        "fusion", flops, read + sum(_written(x, body) for x in roots), dtype, exact, times
    )


def _read(parameter: Instruction, body: Computation) -> int:
    """Bytes that a fusion reads of a parameter: of one that is only sliced, the slices."""
    whole, users = parameter.result_bytes, _users(parameter.name, body)
    if not users or any(user.operands[0] != name for name, user in users):
        return whole
    if all(user.opcode in ("dynamic-slice", "slice", "gather") for _, user in users):
        return min(whole, sum(user.result_bytes for _, user in users))
    if all(user.opcode == "dynamic-update-slice" for _, user in users):
        return sum(body[user.operands[1]].result_bytes for _, user in users)
    return whole


def _users(name: str, body: Computation) -> list[tuple[str, Instruction]]:
    """Instructions that use a value, with its name there: bitcasts and reshapes rename it."""
    found: list[tuple[str, Instruction]] = []
    for user in body.values():
        if name in user.operands:
            renames = user.opcode in ("bitcast", "reshape")
            found += _users(user.name, body) if renames else [(name, user)]
    return found


def _written(root: Instruction, body: Computation) -> int:
    """Bytes that a fusion writes of a result: of an updated array, the update."""
    source = root
    while source.opcode == "bitcast" and source.operands[0] in body:
        source = body[source.operands[0]]
    if source.opcode == "dynamic-update-slice":
        return body[source.operands[1]].result_bytes
    return root.result_bytes
