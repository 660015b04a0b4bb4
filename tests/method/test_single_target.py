"""Rules for conditions with a single target: statistics of a row, temperature, neighbours."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import written_out_fields as written_out

from drifting_jax.compatibility import enable_x64
from drifting_jax.method.fields.options import DriftOptions
from drifting_jax.method.single_target import (
    Moment,
    neighbour_weights,
    single_target_loss,
    temperature_loss,
)

C, G, T, D = 3, 6, 2, 3
FAIR = DriftOptions((1.0,), field="fair_energy")
CROSSED = DriftOptions((0.4,), 0.0)
FRESH = DriftOptions((0.4,), 0.0, negatives="fresh")
SEPARATE = DriftOptions((0.4,), 0.0, combine="separate")


def draw(seed=0, p=1, m=None):
    rng = np.random.default_rng(seed)
    sets = [rng.normal(size=(C, n, T, D)) for n in (G, p)]
    return [*sets, rng.normal(size=(C, m, T, D))] if m else sets


@functools.cache
def compiled(options, per_row):
    def loss(generated, positive, fresh, weight, temperature):
        return single_target_loss(
            generated,
            positive,
            fresh,
            positive_weight=weight,
            options=options,
            per_row=per_row,
            moment=Moment(temperature=temperature),
        )

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def drifted(
    generated, positive, fresh=None, *, weight=None, options=CROSSED, per_row=True, at=None
):
    """The loss, its statistics and its gradient, in float64."""
    function = compiled(options, per_row)
    with enable_x64(True):
        arrays = [None if a is None else jnp.asarray(a) for a in (positive, fresh, weight, at)]
        (loss, statistics), gradient = function(jnp.asarray(generated), *arrays)
    return float(loss), statistics, np.asarray(gradient)


def scale_of(x, y, z=None):
    """S of some rows [c, n, t, d]: the mean distance to all targets, own pairs counting as 1e-4."""
    total, count = 0.0, 0
    for s in (x if z is None else z, y):
        r = np.linalg.norm(x[:, :, None] - s[:, None], axis=-1)
        total, count = total + np.maximum(r, 1e-4).sum(), count + r.size
    return total / count


def expected(x, y, options, *, tau=None, per_row=True):
    """The loss and its gradient, row by row where each row has its own S and norm."""
    field = getattr(written_out, options.field)
    groups = [slice(i, i + 1) for i in range(C)] if per_row else [slice(None)]
    losses, gradients = [], []
    for rows in groups:
        a, b = x[rows], y[rows]
        scale = scale_of(a, b) / np.sqrt(D)
        v = np.zeros_like(a)
        extra = {"combine": options.combine} if options.field == "mean_shift" else {}
        for i in range(len(a)):
            for t in range(T):
                one, target = a[i, :, t] / scale, b[i, :, t] / scale
                own = tau or options.temperatures[0]
                v[i, :, t] = field(one, target, one, None, own, 1.0, "own", **extra)
        v /= np.sqrt(np.mean(v**2))
        losses.append(np.mean(v**2))
        gradients.append(-2 * v / scale / v.size / len(groups))
    return np.mean(losses), np.concatenate(gradients)


@pytest.mark.parametrize("options", [FAIR, CROSSED, SEPARATE], ids=lambda o: o.field + o.combine)
@pytest.mark.parametrize("per_row", [False, True])
def test_each_row_has_its_own_scale_and_norm(options, per_row):
    x, y = draw()
    loss, statistics, gradient = drifted(x, y, options=options, per_row=per_row)
    value, wanted = expected(x, y, options, per_row=per_row)
    np.testing.assert_allclose(loss, value, rtol=1e-7)
    np.testing.assert_allclose(gradient, wanted, rtol=1e-5, atol=1e-7 * np.abs(wanted).max())
    if per_row:
        scales = [scale_of(x[i : i + 1], y[i : i + 1]) for i in range(C)]
        np.testing.assert_allclose(statistics.distance_scale, np.mean(scales), rtol=1e-9)


def test_a_learned_temperature_takes_the_place_of_that_of_the_options():
    x, y = draw(1)
    loss, _, gradient = drifted(x, y, at=np.float64(0.9))
    value, wanted = expected(x, y, CROSSED, tau=0.9)
    np.testing.assert_allclose(loss, value, rtol=1e-7)
    np.testing.assert_allclose(gradient, wanted, rtol=1e-5, atol=1e-7 * np.abs(wanted).max())


def test_a_swapping_the_two_sides_flips_the_drift_of_a_row():
    x, y, z = draw(2, p=4, m=4)
    there, back = (drifted(x, *sides, options=FRESH)[2] for sides in ((y, z), (z, y)))
    np.testing.assert_allclose(there, -back, rtol=1e-7, atol=1e-10)


def test_z_equal_sides_give_nothing():
    x, y = draw(3, p=4)
    loss, statistics, _ = drifted(x, y, y, options=FRESH)
    assert loss < 1e-12 and np.max(np.asarray(statistics.drift_mean_square)) < 1e-20


def test_p_order_does_not_matter():
    x, y = draw(4, p=3)
    order = np.random.default_rng(0).permutation(G)
    loss, _, before = drifted(x, y)
    moved, _, after = drifted(x[:, order], y[:, ::-1])
    np.testing.assert_allclose(moved, loss, rtol=1e-9)
    np.testing.assert_allclose(after, before[:, order], rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("per_row", [False, True])
def test_r_a_row_turns_shifts_and_grows_with_its_inputs(per_row):
    """With statistics of its own each row may grow by another factor, and the loss stays."""
    x, y = draw(5)
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(D, D)))[0]
    factor = np.array([1.0, 10.0, 0.1] if per_row else [3.0] * C)[:, None, None, None]
    loss, _, before = drifted(x, y, per_row=per_row)
    moved, _, after = drifted(*(factor * (a @ turn) + 2.0 for a in (x, y)), per_row=per_row)
    np.testing.assert_allclose(moved, loss, rtol=1e-7)
    # A sample counts as 1e-4 away from itself in S, whatever the unit.
    np.testing.assert_allclose(after * factor, before @ turn, rtol=1e-3, atol=1e-4)


def test_d_doubling_both_sides_leaves_the_direction():
    x, y, z = draw(6, p=3, m=3)
    once = drifted(x, y, z, options=FRESH)[2]
    doubled = drifted(x, *(np.concatenate([a, a], axis=1) for a in (y, z)), options=FRESH)[2]
    np.testing.assert_allclose(doubled, once, rtol=1e-7, atol=1e-10)


def test_c_the_fair_energy_drift_is_a_gradient():
    """Of the almost-fair score: mean r(x_i, y) - (1 - 0.05/g)·ΣΣ r(x_i, x_j)/2g(g - 1)."""
    x, y = draw(7)
    share = 1 - 0.05 / G

    def score(x):
        to_target = np.linalg.norm(x - y, axis=-1).mean(axis=1)
        apart = np.linalg.norm(x[:, :, None] - x[:, None], axis=-1).sum(axis=(1, 2))
        return np.sum(to_target - share * apart / (2 * G * (G - 1)))

    slope, step = np.zeros_like(x), 1e-6
    for at in np.ndindex(*x.shape):
        change = np.zeros_like(x)
        change[at] = step
        slope[at] = (score(x + change) - score(x - change)) / (2 * step)
    gradient = drifted(x, y, options=FAIR, per_row=False)[2]
    ratio = gradient / slope
    np.testing.assert_allclose(ratio, np.full_like(ratio, ratio.flat[0]), rtol=1e-5)
    assert ratio.flat[0] > 0


def expected_temperature_loss(x, y, tau):
    found = []
    for i in range(C):
        scale = scale_of(x[i : i + 1], y[i : i + 1])
        for t in range(T):
            masses = []
            for k in range(G):
                others = np.delete(x[i, :, t], k, axis=0)
                weights = [
                    np.exp(-np.linalg.norm(s - x[i, k, t], axis=-1) / scale / tau)
                    for s in (others, y[i, :, t])
                ]
                masses.append(weights[1].sum() / (weights[0].sum() + weights[1].sum()))
            found.append(-np.log((G - 1 + y.shape[1]) * np.max(masses)))
    return np.mean(found)


@pytest.mark.parametrize("p", [1, 2])
def test_the_temperature_loss_is_its_formula_and_leaves_the_samples_alone(p):
    x, y = draw(8, p=p)
    with enable_x64(True):
        arrays = jnp.asarray(x), jnp.asarray(y)
        function = functools.partial(temperature_loss, options=CROSSED)
        loss, (of_samples, of_temperature) = jax.jit(
            jax.value_and_grad(lambda x, tau: function(x, arrays[1], tau), argnums=(0, 1))
        )(arrays[0], jnp.float64(0.3))
    np.testing.assert_allclose(loss, expected_temperature_loss(x, y, 0.3), rtol=1e-9)
    assert not np.any(of_samples)
    ends = [expected_temperature_loss(x, y, tau) for tau in (0.3 - 1e-6, 0.3 + 1e-6)]
    np.testing.assert_allclose(of_temperature, (ends[1] - ends[0]) / 2e-6, rtol=1e-5)


def test_the_weights_of_neighbours_are_a_kernel_on_conditions():
    distance = np.array([[0.0, 0.1, 0.2], [0.0, 0.05, 1.0]])
    found = neighbour_weights(jnp.asarray(distance, jnp.float32), 0.1)
    np.testing.assert_allclose(found, np.exp(-(distance**2) / 0.02), rtol=1e-5)


@pytest.mark.parametrize("width", [1e-3, 1.0, 1e3])
def test_neighbours_attract_by_their_weights(width):
    """One positive as the width goes to 0, all alike as it grows; between, the weighted mean."""
    x, y = draw(9, p=3)
    distance = np.array([[0.0, 0.3, 0.9]] * C)
    weight = np.exp(-0.5 * (distance / width) ** 2)
    gradient = drifted(x, y, weight=weight, options=FAIR, per_row=False)[2]
    if width < 1:
        wanted = drifted(x, y[:, :1], options=FAIR, per_row=False)[2]
    elif width > 1:
        wanted = drifted(x, y, options=FAIR, per_row=False)[2]
    else:
        apart = x[:, :, None] - y[:, None]  # [c, g, p, t, d]
        to = -apart / np.linalg.norm(apart, axis=-1, keepdims=True)
        pull = np.einsum("cp,cgptd->cgtd", weight / weight.sum(1, keepdims=True), to)
        among = x[:, :, None] - x[:, None]
        size = np.linalg.norm(among, axis=-1, keepdims=True)
        push = (among / np.where(size > 0, size, 1)).sum(axis=2) / (G - 1)
        wanted = -(pull + (1 - 0.05 / G) * push)
    directions = [a / np.linalg.norm(a) for a in (gradient, wanted)]
    np.testing.assert_allclose(*directions, rtol=1e-5, atol=1e-8)
