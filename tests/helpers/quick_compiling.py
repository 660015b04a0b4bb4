"""Flags of XLA for tests, which compile for longer than they compute."""

import importlib.metadata

# Level 0 compiles in two thirds of the time. Without the fusion emitters the compiler goes from HLO
# to LLVM at once, not through MLIR: again less than half. The last JAX that knows this flag is
# not known, and an unknown flag ends the process: 0.7.2 and 0.10.2 have it, 0.12.0.1 has not.
_LAST_WITH_BOTH = (0, 10)
_VERSION = tuple(int(number) for number in importlib.metadata.version("jaxlib").split(".")[:2])
FLAGS = "--xla_backend_optimization_level=0"
if _VERSION <= _LAST_WITH_BOTH:
    FLAGS += " --xla_cpu_use_fusion_emitters=false"


def on_devices(count: int) -> str:
    """The flags, and those of so many simulated devices."""
    return f"--xla_force_host_platform_device_count={count} {FLAGS}"
