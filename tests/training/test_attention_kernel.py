"""Which program computes the attention on which kind of device."""

from types import SimpleNamespace

import pytest

from drifting_jax.compiler.gpus import GPUS
from drifting_jax.errors import UserError
from drifting_jax.models.dit import DiT
from drifting_jax.models.mlp import MLP
from drifting_jax.training.attention_kernel import with_attention_kernel

MODEL = DiT(8, 1, 1, patch_size=1, width=32, depth=1, num_heads=2, num_classes=2)


def device(kind, platform="gpu", **attributes):
    return SimpleNamespace(platform=platform, device_kind=kind, **attributes)


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        (device(GPUS["h100"].kind), "fused"),
        (device(GPUS["t4"].kind), "products"),
        (device("NVIDIA RTX A4000", compute_capability="8.6"), "fused"),
        (device("Tesla V100", compute_capability="7.0"), "products"),
        (device("AMD Instinct MI300X", compute_capability="gfx942"), "products"),
        (device("TPU v5 lite", "tpu"), "products"),
        (device("cpu", "cpu"), "products"),
    ],
)
def test_auto_takes_the_kernel_where_there_is_one(device, expected):
    assert with_attention_kernel(MODEL, "auto", device).attention_kernel == expected


def test_a_choice_is_kept():
    for name in ("products", "fused"):
        found = with_attention_kernel(MODEL, name, device(GPUS["a100"].kind))
        assert found.attention_kernel == name
    mlp = MLP((8,))
    assert with_attention_kernel(mlp, "auto", device(GPUS["a100"].kind)) is mlp


def test_a_kernel_that_the_gpu_lacks_is_an_error():
    with pytest.raises(UserError, match="compute capability 8 or more; found Tesla T4"):
        with_attention_kernel(MODEL, "fused", device(GPUS["t4"].kind))
