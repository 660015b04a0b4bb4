"""Schedules against the released figures, the optimizer against AdamW in NumPy."""

from pathlib import Path

import jax
import numpy as np
import pytest
import read_release

from drifting_jax.steps import optim

FIGURES = np.load(Path(__file__).parents[1] / "fixtures" / "release" / "G_lr_ema.npz")
SCHEDULES = {"const": "constant", "cosine": "cosine", "cos": "cosine"}
SETTINGS = {"b1": 0.9, "b2": 0.95, "weight_decay": 0.1}


@pytest.mark.parametrize("name", ["const", "cosine", "const_config", "nowarmup"])
def test_schedule_equals_the_release(name):
    settings = read_release.meta(FIGURES, f"lr/{name}/kwargs")
    schedule = optim.learning_rate_schedule(
        settings["learning_rate"],
        warmup_steps=settings["warmup_steps"],
        num_steps=settings["total_steps"],
        schedule=SCHEDULES[settings["lr_schedule"]],
    )
    found = jax.jit(jax.vmap(schedule))(FIGURES[f"lr/{name}/steps"])
    expected = FIGURES[f"lr/{name}/values"]
    # A warm-up to 4e-4 keeps six digits of its first value, 1e-6, in float32.
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-10)


def test_a_constant_rate_needs_no_end():
    schedule = optim.learning_rate_schedule(3e-4, warmup_steps=0)
    assert np.float32(schedule(0)) == np.float32(schedule(10**6)) == np.float32(3e-4)


def test_a_cosine_may_end_at_a_rate():
    schedule = optim.learning_rate_schedule(
        5e-5, warmup_steps=10, num_steps=110, schedule="cosine", end=1e-5
    )
    found = [float(schedule(step)) for step in (10, 60, 110, 200)]
    np.testing.assert_allclose(found, [5e-5, 3e-5, 1e-5, 1e-5], rtol=1e-5)


def test_schedule_errors():
    with pytest.raises(ValueError, match="constant or cosine; found 'linear'"):
        optim.learning_rate_schedule(1e-3, warmup_steps=0, schedule="linear")
    with pytest.raises(ValueError, match="num_steps above warmup_steps; found 10 and 10"):
        optim.learning_rate_schedule(1e-3, warmup_steps=10, num_steps=10, schedule="cosine")


def adamw(params, gradients, rates, clip, *, b1, b2, weight_decay, epsilon=1e-8):
    """Parameters after each step: global-norm clip, Adam, decoupled decay of everything."""
    params = {k: v.astype(np.float64) for k, v in params.items()}
    m, v = ({k: np.zeros_like(x) for k, x in params.items()} for _ in range(2))
    history = []
    for t, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        norm = np.sqrt(sum(np.sum(np.square(g.astype(np.float64))) for g in gradient.values()))
        shrink = clip / norm if clip and norm > clip else 1.0
        for k, g in gradient.items():
            g = shrink * g.astype(np.float64)
            m[k] = b1 * m[k] + (1 - b1) * g
            v[k] = b2 * v[k] + (1 - b2) * g**2
            step = (m[k] / (1 - b1**t)) / (np.sqrt(v[k] / (1 - b2**t)) + epsilon)
            params[k] = params[k] - rate * (step + weight_decay * params[k])
        history.append({k: x.copy() for k, x in params.items()})
    return history


@pytest.mark.parametrize("clip", [0.0, 2.0])
def test_optimizer_equals_numpy(clip):
    rng = np.random.default_rng(0)
    shapes = {"kernel": (3, 4), "bias": (4,), "scale": ()}

    def draw(size):
        return {k: np.float32(size * rng.normal(size=s)) for k, s in shapes.items()}

    params = draw(1.0)
    gradients = [draw(size) for size in (0.1, 5.0, 0.3, 40.0, 0.01)]  # some beyond the clip
    schedule = optim.learning_rate_schedule(0.05, warmup_steps=3)
    rates = [1e-6 + (0.05 - 1e-6) * min(i, 3) / 3 for i in range(len(gradients))]
    optimizer = optim.make_optimizer(schedule, clip_norm=clip, **SETTINGS)

    @jax.jit
    def step(params, opt_state, gradient):
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return jax.tree.map(lambda p, u: p + u, params, updates), opt_state

    found, opt_state = params, optimizer.init(params)
    expected = adamw(params, gradients, rates, clip, **SETTINGS)
    for gradient, at_step in zip(gradients, expected, strict=True):
        found, opt_state = step(found, opt_state, gradient)
        for name, value in at_step.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


def test_decay_reaches_every_parameter():
    params = {"kernel": np.ones((2, 2), np.float32), "bias": np.ones(2, np.float32)}
    optimizer = optim.make_optimizer(lambda step: 0.1, clip_norm=2.0, **SETTINGS)
    zero = jax.tree.map(np.zeros_like, params)
    updates, _ = optimizer.update(zero, optimizer.init(params), params)
    for update in jax.tree.leaves(updates):
        np.testing.assert_allclose(update, -0.1 * 0.1, rtol=1e-6)
