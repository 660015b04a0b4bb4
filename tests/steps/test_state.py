"""The moving averages and a step that is skipped, against NumPy."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from drifting_jax.steps import state as states

FIGURES = np.load(Path(__file__).parents[1] / "fixtures" / "release" / "G_lr_ema.npz")
DECAYS = (0.5, 0.99, 0.0)
OPTIMIZER = optax.adam(0.1)


def params(seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    return {"a": rng.normal(size=(2, 3)).astype(np.float32), "b": {"c": np.float32([1.0, -2.0])}}


@jax.jit
def step(state, gradients, finite, culprit):
    return states.apply_gradients(
        state, gradients, OPTIMIZER, ema_decays=DECAYS, finite=finite, culprit=culprit
    )


def create() -> states.TrainState:
    tree = jax.tree.map(jnp.asarray, params())
    return states.create_state(tree, OPTIMIZER, ema_decays=DECAYS)


def assert_trees_equal(found, expected, equal=np.testing.assert_array_equal):
    jax.tree.map(lambda a, b: equal(np.asarray(a), np.asarray(b)), found, expected)


def test_average_equals_the_release():
    update = jax.jit(states.update_ema)
    average = FIGURES["ema/init"]
    for now, expected in zip(FIGURES["ema/params"], FIGURES["ema/values"], strict=True):
        average = update(average, now, float(FIGURES["ema/decay"]))
        np.testing.assert_allclose(average, expected, rtol=1e-6, atol=1e-7)


def test_a_state_starts_with_every_average_at_the_parameters():
    state = create()
    assert set(state.ema) == {"0.5", "0.99", "0"}
    for average in state.ema.values():
        assert_trees_equal(average, params())
    assert (int(state.step), int(state.skipped), int(state.skipped_in_a_row)) == (0, 0, 0)
    assert int(state.culprit) == states.NO_CULPRIT


def test_a_fresh_state_can_be_donated():
    state = create()
    donated = jax.jit(lambda s: s.replace(step=s.step + 1), donate_argnums=0)(state)
    assert int(donated.step) == 1
    assert state.params["a"].is_deleted() and state.ema["0.5"]["a"].is_deleted()
    assert_trees_equal(donated.ema["0.99"], params())


def test_each_average_follows_its_own_decay():
    state = create()
    expected = {decay: jax.tree.map(np.float64, params()) for decay in DECAYS}
    for seed in range(1, 5):
        state = step(state, params(seed), True, 0)
        now = jax.tree.map(np.float64, state.params)
        for decay in DECAYS:
            expected[decay] = jax.tree.map(
                lambda a, p, d=decay: d * a + (1 - d) * p, expected[decay], now
            )
    assert np.abs(now["a"] - params()["a"]).max() > 0.1
    for decay in DECAYS:
        assert_trees_equal(
            state.ema[states.ema_name(decay)],
            expected[decay],
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        )


def test_a_step_that_is_not_finite_changes_counters_alone():
    before = step(create(), params(1), True, 7)
    broken = params(2) | {"b": {"c": np.float32([np.nan, np.inf])}}
    after = step(before, broken, False, 5)
    for kept in ("params", "opt_state", "ema"):
        assert_trees_equal(getattr(after, kept), getattr(before, kept))
    assert int(before.culprit) == states.NO_CULPRIT
    assert (int(before.step), int(after.step)) == (1, 2)  # so the next step has other keys
    assert (int(after.skipped), int(after.skipped_in_a_row), int(after.culprit)) == (1, 1, 5)


def test_skipped_steps_are_counted_in_a_row_and_in_all():
    state, good = create(), params(1)
    counts = []
    for finite in (False, False, True, False):
        state = step(state, good, finite, 3)
        counts.append((int(state.skipped), int(state.skipped_in_a_row)))
    assert counts == [(1, 1), (2, 2), (2, 0), (3, 1)]
    assert int(state.step) == 4


def test_the_optimizer_does_not_count_a_skipped_step():
    gradients = params(1), params(2)
    with_skip = step(step(step(create(), gradients[0], True, 0), {**gradients[0]}, False, 0),
                     gradients[1], True, 0)  # fmt: skip
    without = step(step(create(), gradients[0], True, 0), gradients[1], True, 0)
    assert_trees_equal(with_skip.params, without.params)


def test_averages_of_widths_weigh_updates_by_a_power_and_leave_out_skipped_steps():
    """EDM2, 3.1: weights (s^(γ+1) - (s-1)^(γ+1)) / t^(γ+1); the width of γ = 3 is 2/(5·√6)."""
    width, gamma = 2 / (5 * 6**0.5), 3.0

    @jax.jit
    def wide_step(state, gradients, finite):
        return states.apply_gradients(
            state,
            gradients,
            OPTIMIZER,
            ema_decays=(0.9,),
            ema_widths=(width,),
            finite=finite,
            culprit=0,
        )

    tree = jax.tree.map(jnp.asarray, params())
    state = states.create_state(tree, OPTIMIZER, ema_decays=(0.9,), ema_widths=(width,))
    recorded = []
    for seed in range(7):
        finite = seed not in (0, 4)
        state = wide_step(state, params(seed), finite)
        if finite:
            recorded.append(np.asarray(state.params["a"], np.float64))
    ends = np.arange(len(recorded) + 1.0) ** (gamma + 1)
    weights = np.diff(ends) / ends[-1]
    expected = np.einsum("s,s...->...", weights, np.stack(recorded))
    found = state.ema[states.width_name(width)]["a"]
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-7)
    assert set(state.ema) == {"0.9", states.width_name(width)}


def test_names_of_widths():
    assert [states.width_name(width) for width in (0.05, 0.1)] == ["width_0.05", "width_0.1"]


def test_names_of_decays():
    assert [states.ema_name(d) for d in (0.999, 0.9999, 0.5, 0.0)] == [
        "0.999",
        "0.9999",
        "0.5",
        "0",
    ]
