"""Which program computes a generator's attention on a device."""

import jax

from drifting_jax.compiler import targets
from drifting_jax.config import ConfigDict
from drifting_jax.config.stored import with_values
from drifting_jax.errors import UserError


def with_attention_kernel(config: ConfigDict, device: jax.Device) -> ConfigDict:
    """Returns the config with the kernel for a device, where `model.attention_kernel` is "auto".

    Raises:
      UserError: the config asks for a kernel that this kind of GPU lacks.
    """
    chosen, has_triton = config.model.attention_kernel, targets.has_triton(device)
    if chosen == "fused" and device.platform == "gpu" and not has_triton:
        raise UserError(
            "config.model.attention_kernel is 'fused', which needs an NVIDIA GPU of compute "
            f"capability 8 or more; found {device.device_kind}: set it to 'auto'"
        )
    if chosen != "auto":
        return config
    return with_values(config, {"model.attention_kernel": "fused" if has_triton else "products"})
