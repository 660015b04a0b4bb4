"""The step of a U-Net with dropout: the same in microbatches, and on a mesh."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from drifting_jax.distributed import meshes, transfer
from drifting_jax.method import encoders
from drifting_jax.method.fields.options import DriftOptions
from drifting_jax.models.unet import UNet
from drifting_jax.steps import generator_step, sample_queue
from drifting_jax.steps import state as states
from drifting_jax.steps.generator_settings import GeneratorStepConfig
from drifting_jax.weights.shapes import param_shapes

MODEL = UNet(
    image_size=4,
    in_channels=1,
    out_channels=1,
    patch_size=1,
    width=4,
    num_heads=1,
    num_classes=4,
    multipliers=(1,),
    blocks_per_level=1,
    attention_sides=(),
    groups=2,
    dropout=0.4,
    condition_width=4,
    num_style_books=1,
    styles_per_book=3,
)
SETTINGS = GeneratorStepConfig(
    labels=4,
    generated=4,
    positives=4,
    unconditional=2,
    drift=DriftOptions(temperatures=(0.2, 1.0)),
    num_steps=100,
    cfg_minimum=1.0,
    cfg_maximum=4.0,
    cfg_power=3.0,
    cfg_probability_of_one=0.0,
    ema_decays=(0.9,),
)
# Gradient descent by the raw gradient: unlike Adam's, its step shows the gradient's size.
OPTIMIZER = optax.sgd(0.1)
FROZEN = np.random.default_rng(5).normal(size=(4, 6)).astype(np.float32)


def projections(frozen, images):
    return {"stage": jnp.tanh(jnp.einsum("btd,de->bte", images.reshape(-1, 4, 4), frozen))}


# Stands for an encoder: four locations of a random projection, and the images themselves.
FEATURES = encoders.with_raw(encoders.FeatureFunction(projections, dict))


@functools.cache
def gradient(dropout=0.4, mesh=(1, 1), **changes):
    """What the first step takes from the parameters, which are random; and its metrics."""
    model = MODEL.clone(dropout=dropout)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.float32(rng.normal(0, 0.4, leaf.shape)), param_shapes(model)
    )
    mesh = meshes.make_mesh(*mesh)
    queue = sample_queue.init(
        4, per_class=4, unconditional=8, shape=(4, 4, 1), dtype=jnp.uint8, mesh=mesh
    )
    images = rng.integers(0, 256, (16, 4, 4, 1), dtype=np.uint8)
    batch = {"image": images, "label": np.arange(16, dtype=np.int32) % 4}
    everywhere = meshes.replicated(mesh)
    step = functools.partial(
        generator_step.generator_step,
        model=model,
        feature_function=FEATURES,
        optimizer=OPTIMIZER,
        settings=dataclasses.replace(SETTINGS, **changes),
    )
    state, _, metrics = jax.jit(step)(
        jax.device_put(
            states.create_state(params, OPTIMIZER, ema_decays=SETTINGS.ema_decays), everywhere
        ),
        queue,
        jax.device_put(FROZEN, everywhere),
        transfer.global_batch(mesh, batch),
        jax.random.key(3),
    )
    moved = jax.tree.map(lambda x, y: np.asarray(x) - np.asarray(y), state.params, params)
    return moved, transfer.fetch(metrics.statistics)


def differences(found, expected):
    """The relative difference of each array."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    return [np.linalg.norm(a - b) / (np.linalg.norm(b) + 1e-9) for a, b in pairs]


@pytest.mark.parametrize(
    "changes",
    [
        {"microbatches": 4, "keep_maps": "no"},
        pytest.param(
            {"mesh": (2, 2), "microbatches": 2, "keep_maps": "yes"}, marks=pytest.mark.slow
        ),
    ],
    ids=str,
)
def test_a_step_with_dropout_is_the_same_in_pieces(changes):
    """A microbatch is generated two or three times: each time with the same masks."""
    assert max(differences(gradient(**changes), gradient())) < 2e-4


@pytest.mark.slow
def test_a_step_applies_the_dropout():
    (moved, _), (without, _) = gradient(), gradient(dropout=0.0)
    assert min(differences(moved, without)) > 1e-2
