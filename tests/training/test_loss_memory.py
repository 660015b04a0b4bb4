"""The memory of the loss of whole class rows: counted by hand, and compiled for a GPU."""

import importlib.util
from pathlib import Path

import jax
import pytest

from drifting_jax.compiler import targets
from drifting_jax.config import file_beside, resolve
from drifting_jax.data.sources import data_spec
from drifting_jax.distributed import meshes
from drifting_jax.method.feature_losses import FeatureSets, loss_and_cotangents
from drifting_jax.training import activations, build, frozen
from drifting_jax.training.compiled_report import compile_for
from drifting_jax.training.loss_memory import loss_bytes

CONFIGS = Path(__file__).parents[2] / "configs"
HAS_COMPILER = any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13))


def features_of(variant):
    """A config of CIFAR-10 and the shapes of its features."""
    found = resolve(file_beside(CONFIGS / "any.py", "cifar10.py").get_config(variant))
    extras, vae = frozen.expected_networks(found)
    spec = data_spec(found.data)
    variables = frozen.variables_shapes(found, spec, extras, vae)
    return found, activations.feature_shapes(found, spec, variables, extras=extras)


@pytest.mark.parametrize(
    ("variant", "rows", "generated", "targets", "channels"),
    [("unconditional", 1, 640, 1280, 768), ("conditional", 10, 64, 144, 768)],
)
def test_distances_weights_and_drifts_of_the_largest_feature(
    variant, rows, generated, targets, channels
):
    """DINOv2's feature has 256 tokens and 162 statistics, and there are three temperatures."""
    found, features = features_of(variant)
    of_features = targets * (418 * channels + 3 + 3072)
    pairs = 418 * generated * targets
    drifts = 418 * generated * channels
    expected = 4 * rows * (of_features + pairs + 3 * pairs + 3 * drifts)
    one = meshes.make_mesh(1, devices=jax.devices()[:1])
    assert loss_bytes(found, one, features) == expected
    assert loss_bytes(found, meshes.make_mesh(8), features) == expected / 8


@pytest.mark.slow
@pytest.mark.skipif(not HAS_COMPILER, reason='needs pip install -e ".[gpu-compile]"')
@pytest.mark.parametrize("variant", ["unconditional", "small"])
def test_a_compiled_loss_takes_what_is_estimated(variant):
    found, features = features_of(variant)
    device = targets.devices_of("h100")[0]
    sharding = jax.sharding.SingleDeviceSharding(device)
    samples = {
        name: jax.ShapeDtypeStruct(
            (1, found.train.generated_per_label, *x.shape[1:]), x.dtype, sharding=sharding
        )
        for name, x in features.items()
    }

    def loss(generated, positive):
        return loss_and_cotangents(FeatureSets(generated, positive), build.drift_options(found))

    memory = compile_for(device, jax.jit(loss).lower(samples, samples)).memory_analysis()
    # The features are among the targets already, and the gradient takes the place of a drift.
    mesh = meshes.make_mesh(1, devices=jax.devices()[:1])
    estimate = loss_bytes(found, mesh, features)
    assert 0.9 < memory.temp_size_in_bytes / estimate < 1.1
