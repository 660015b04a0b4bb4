"""How well a step uses its devices: operations a second, share of their peak, memory."""

import jax

from drifting_jax.compiler import targets
from drifting_jax.compiler.flops import product_flops
from drifting_jax.training.program import Program


class Utilisation:
    """The rates of a program's steps; its operations are counted when they are first asked for."""

    def __init__(self, program: Program) -> None:
        """Asks nothing of the devices yet."""
        self._program = program
        self._flops: float | None = None

    def of(self, steps: int, seconds: float) -> dict[str, float]:
        """Returns scalars of some steps that took these seconds.

        Returns:
          `tflops_per_device`: 10¹² operations a second of matrix products and convolutions, with
          those that are computed again; `mfu`, the same over the device's peak in bfloat16, if the
          kind of device is known; `peak_memory_gib` of this process's fullest device so far, if it
          counts.
        """
        program = self._program
        if self._flops is None:
            traced = program.step.trace(program.carry, program.frozen, program.batch)
            self._flops = product_flops(traced.jaxpr)
        rate = self._flops * steps / seconds / program.mesh.size
        scalars = {"tflops_per_device": rate / 1e12}
        if peak := targets.peak_flops(program.mesh.devices.flat[0]):
            scalars["mfu"] = rate / peak
        if used := max(map(_peak_bytes, program.mesh.local_devices), default=0):
            scalars["peak_memory_gib"] = used / 2**30
        return scalars


def _peak_bytes(device: jax.Device) -> int:
    try:
        return (device.memory_stats() or {}).get("peak_bytes_in_use", 0)
    except jax.errors.JaxRuntimeError:  # an allocator that does not count
        return 0
