"""Which program computes a generator's attention in training."""

import flax.linen as nn
import jax

from drifting_jax.compiler import targets
from drifting_jax.config import ConfigDict
from drifting_jax.data.sources import DataSpec
from drifting_jax.errors import UserError
from drifting_jax.training import build


def generator_in_training(config: ConfigDict, spec: DataSpec, device: jax.Device) -> nn.Module:
    """Returns the generator of config.model, with the attention that a device computes.

    Raises:
      UserError: it cannot make images of this shape, or this kind of GPU lacks the kernel.
    """
    model = build.make_generator(config, spec)
    return with_attention_kernel(model, config.model.attention_kernel, device)


def with_attention_kernel(model: nn.Module, kernel: str, device: jax.Device) -> nn.Module:
    """Returns a generator that computes its attention as `model.attention_kernel` says.

    Args:
      model: a generator; one without attention is returned as it is.
      kernel: "products", "fused", or "auto" for "fused" where the kind of device has it.
      device: of the training.

    Raises:
      UserError: this kind of GPU lacks the kernel.
    """
    has_triton = _has_triton(device)
    if kernel == "fused" and device.platform == "gpu" and not has_triton:
        raise UserError(
            "config.model.attention_kernel is 'fused', which needs an NVIDIA GPU of compute "
            f"capability 8 or more; found {device.device_kind}: set it to 'auto'"
        )
    if not hasattr(model, "attention_kernel"):
        return model
    is_fused = kernel == "fused" or (kernel == "auto" and has_triton)
    return model.clone(attention_kernel="fused" if is_fused else "products")


def _has_triton(device: jax.Device) -> bool:
    """Whether XLA compiles Triton's kernels for a device: NVIDIA's from compute capability 8 on."""
    if (gpu := targets.gpu_of(device)) is not None:
        return gpu.capability >= (8, 0)
    major = str(getattr(device, "compute_capability", "")).partition(".")[0]
    return device.platform == "gpu" and major.isdecimal() and int(major) >= 8
