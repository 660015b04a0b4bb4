"""The step of one group without classes: its loss in NumPy, parts of the row, and devices."""

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
from drifting_jax.models import generators
from drifting_jax.models.dit import DiT
from drifting_jax.steps import dataset_queue, generator_rows
from drifting_jax.steps.generator_settings import GeneratorStepConfig
from drifting_jax.steps.generator_step import (
    first_negatives,
    first_statistics,
    generator_step,
)
from drifting_jax.steps.state import create_state

MODEL = DiT(
    image_size=4,
    in_channels=1,
    out_channels=1,
    patch_size=2,
    width=16,
    depth=1,
    num_heads=2,
    num_classes=1,
    num_context_tokens=1,
    num_style_books=2,
    styles_per_book=3,
)
SETTINGS = GeneratorStepConfig(
    labels=1,
    generated=16,
    positives=24,
    unconditional=0,
    drift=DriftOptions((0.2, 1.0), affinity_floor=0.0),
    num_steps=100,
    cfg_minimum=1.0,
    cfg_maximum=1.0,
    cfg_power=0.0,
    cfg_probability_of_one=0.0,
    ema_decays=(0.9,),
)
OPTIMIZER = optax.sgd(0.1)  # its step shows the gradient
KEY = jax.random.key(3)
WEIGHTS = np.random.default_rng(5).normal(size=(4, 6)).astype(np.float32)
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def _locations(weights, images):
    return {"stage": jnp.tanh(jnp.einsum("btd,de->bte", images.reshape(-1, 4, 4), weights))}


FEATURES = encoders.with_raw(encoders.FeatureFunction(_locations, dict))


def params():
    shapes = jax.eval_shape(lambda: generators.init_generator(jax.random.key(0), MODEL))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.float32(rng.normal(0, 0.3, x.shape)), shapes)


def data():
    images = np.random.default_rng(1).integers(0, 256, (50, 4, 4, 1), dtype=np.uint8)
    return {"image": images, "label": np.zeros(50, np.int32)}


@functools.cache
def first_step(devices: int = 1, **changes):
    """State, queue and metrics of the first step, on the host."""
    mesh = meshes.make_mesh(devices)
    everywhere = meshes.replicated(mesh)
    given = create_state(params(), OPTIMIZER, ema_decays=(0.9,)), WEIGHTS, data()
    state, weights, batch = jax.device_put(given, everywhere)
    step = functools.partial(
        generator_step,
        model=MODEL,
        feature_function=FEATURES,
        optimizer=OPTIMIZER,
        settings=dataclasses.replace(SETTINGS, **changes),
    )
    queue = dataset_queue.init(1, mesh=mesh)
    return transfer.fetch(jit(step)(state, queue, weights, batch, KEY))


def samples():
    """The generated and the real samples of the first step, [n, 4, 4, 1] floats each."""

    @jit
    def draw(batch):
        queue = dataset_queue.init(1, mesh=meshes.make_mesh(1))
        dataset = dataset_queue.opened(queue, batch, KEY)
        step_key = jax.random.fold_in(KEY, 0)
        rows = generator_rows.draw_rows(step_key, jnp.int32(0), dataset, SETTINGS)
        keys = rows.input_keys.reshape(-1)
        noise, styles = jax.vmap(lambda key: generators.draw_inputs(key, MODEL))(keys)
        labels, alpha = jnp.zeros(len(keys), jnp.int32), jnp.ones(len(keys))
        made = MODEL.apply({"params": params()}, noise, labels, styles, alpha)
        return made, rows.positive[0, 0]

    made, real = draw(data())
    return np.float64(made), np.float64(real) / 127.5 - 1


def expected_loss(x, y):
    """Loss, S and raw drift mean squares of generated x [g, t, d] and real y [p, t, d]."""
    g, locations, d = x.shape
    targets = np.concatenate([x, y])
    r = np.linalg.norm(x[:, None] - targets[None], axis=-1)  # [g, n, t]
    scale = r.mean()
    total, squares = 0, []
    for tau in SETTINGS.drift.temperatures:
        v = np.zeros_like(x)
        for t in range(locations):
            k = np.exp(-r[:, :, t] / scale / tau)
            k[np.arange(g), np.arange(g)] = 0  # no sample repels itself
            a = k / np.sqrt(k.sum(0, keepdims=True) * k.sum(1, keepdims=True))
            a_x, a_y = a[:, :g], a[:, g:]
            attracts = a_x.sum(1, keepdims=True) * (a_y @ y[:, t])
            repels = a_y.sum(1, keepdims=True) * (a_x @ x[:, t])
            v[:, t] = (attracts - repels) * np.sqrt(d) / scale
        squares.append(np.mean(v**2))
        total = total + v / np.sqrt(squares[-1])
    return np.mean(total**2), scale, squares


def test_the_loss_is_that_of_its_formula():
    _, queue, metrics = first_step()
    generated, real = samples()
    loss = 0
    for name in ("stage", "raw"):
        if name == "stage":
            sets = [np.tanh(a.reshape(-1, 4, 4) @ np.float64(WEIGHTS)) for a in (generated, real)]
        else:
            sets = [a.reshape(len(a), 1, -1) for a in (generated, real)]
        of_feature, scale, squares = expected_loss(*sets)
        loss += of_feature
        found = metrics.statistics[name]
        np.testing.assert_allclose(found.distance_scale, scale, rtol=1e-5)
        np.testing.assert_allclose(found.drift_mean_square, squares, rtol=1e-3)
    np.testing.assert_allclose(metrics.loss, loss, rtol=1e-4)
    assert metrics.cfg_scale == 1
    images = {tuple(image.reshape(-1)) for image in real}
    assert len(images) == 24  # drawn without replacement
    assert (int(queue.epoch[0]), int(queue.slot[0])) == (0, 24)


@pytest.mark.parametrize(
    ("devices", "changes"),
    [
        (1, {"parts_of_rows": 4}),
        pytest.param(8, {}, marks=pytest.mark.slow),
        pytest.param(8, {"parts_of_rows": 2}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_parts_of_the_row_and_devices_change_nothing(devices, changes):
    assert_same(first_step(devices, **changes), first_step())


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"drift": DriftOptions((0.05,), field="w_flow")},
        {"labels": 2, "unconditional": 8, "cfg_maximum": 2.0},
    ],
    ids=("fresh", "guided"),
)
def test_parts_of_rows_with_other_groups_of_samples(changes):
    assert_same(first_step(parts_of_rows=4, **changes), first_step(**changes))


def assert_same(found, expected):
    """State, queue and metrics, up to the order of sums; and the parameters have moved."""
    before = jax.tree.leaves(params())
    for old, new in zip(before, jax.tree.leaves(expected[0].params), strict=True):
        assert np.isfinite(new).all() and np.abs(new - np.asarray(old)).max() > 1e-6
    wanted = jax.tree_util.tree_leaves_with_path(expected)
    for (path, value), got in zip(wanted, jax.tree.leaves(found), strict=True):
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(got, value, rtol=1e-4, atol=1e-5, err_msg=name)


def test_a_run_begins_with_the_same_statistics_and_negatives_in_parts():
    mesh = meshes.make_mesh(1)
    state, weights, batch = jax.device_put(
        (create_state(params(), OPTIMIZER, ema_decays=(0.9,)), WEIGHTS, data()),
        meshes.replicated(mesh),
    )

    def beginnings(parts: int):
        given = {
            "model": MODEL,
            "feature_function": FEATURES,
            "settings": dataclasses.replace(SETTINGS, parts_of_rows=parts),
        }

        @jit
        def begin(state, weights, batch):
            queue = dataset_queue.opened(dataset_queue.init(1, mesh=mesh), batch, KEY)
            return (
                first_statistics(state, queue, weights, KEY, **given),
                first_negatives(state, queue, weights, KEY, **given),
            )

        return transfer.fetch(begin(state, weights, batch))

    for whole, parts in zip(*map(jax.tree.leaves, (beginnings(1), beginnings(4))), strict=True):
        np.testing.assert_allclose(parts, whole, rtol=1e-5, atol=1e-6)
