"""Every field against its formula in float64 NumPy, its closed values, and its symmetries."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import written_out_fields as written_out

from drifting_jax.compatibility import enable_x64
from drifting_jax.method.fields import transport
from drifting_jax.method.fields.options import DriftOptions
from drifting_jax.method.fields.table import FIELDS, check_options, drift_names
from drifting_jax.method.fields.velocity import drifting_velocity

# Fields with parameters: (name, options).
CASES = [
    ("mean_shift", {}),
    ("mean_shift", {"combine": "separate"}),
    ("bias_corrected", {}),
    ("bias_corrected", {"normalize": "targets", "kernel": "gaussian"}),
    ("kernel_gradient", {}),
    ("kernel_gradient", {"kernel": "gaussian"}),
    ("sharp", {}),
    ("sharp", {"kernel": "gaussian"}),
    ("kl_chi2", {}),
    ("sinkhorn", {}),
    ("sinkhorn", {"cost": "distance", "iterations": 3}),
    ("w_flow", {}),
    ("w_flow", {"cost": "distance", "iterations": 1}),
    ("energy", {}),
    ("energy", {"neighbours": 3}),
    ("fair_energy", {}),
    ("mmd", {}),
    ("sliced", {}),
]
# At most half an ulp of the largest number of the sums; the fields are computed in float64 here.
CLOSE = {"rtol": 1e-9, "atol": 1e-11}


@functools.cache
def compiled(options: DriftOptions):
    return jax.jit(functools.partial(drifting_velocity, options=options))


def velocity(name, x, y, z=None, o=None, *, tau=0.4, alpha=1.0, seed=0, negatives=None, **changes):
    """V [g, d] in float64; z is a fresh batch, or None for the field's other negatives."""
    if negatives is None:
        negatives = "fresh" if z is not None else other_negatives(name)
    options = DriftOptions((tau,), field=name, negatives=negatives, **changes)
    if name == "mean_shift":
        options = DriftOptions((tau,), 0.0, field=name, negatives=negatives, **changes)
    check_options(options)
    with enable_x64(True):
        x, y, z, o = (None if a is None else jnp.asarray(a, jnp.float64) for a in (x, y, z, o))
        key = jax.random.key(seed) if FIELDS[name].draws else None
        found = compiled(options)(x, y, z, o, cfg_scale=jnp.float64(alpha), key=key)
        assert found.dtype == jnp.float64 and found.shape == (1, *x.shape)
        return np.asarray(found[0])


def other_negatives(name):
    """The field's first negatives that are the samples themselves."""
    return next(kind for kind in FIELDS[name].negatives if kind != "fresh")


def draw(seed=0, g=6, p=5, m=5, u=4, d=3):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(n, d)) for n in (g, p, m, u)]


def expected(name, x, y, z, o, tau, alpha, own, **options):
    if name == "sliced":
        with enable_x64(True):
            key, shape = jax.random.key(0), (128, x.shape[1])
            directions = np.asarray(jax.random.normal(key, shape, jnp.float64))
        options["directions"] = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    return getattr(written_out, name)(x, y, z, o, tau, alpha, own, **options)


def test_every_field_is_tried_and_reads_options_that_exist():
    assert {name for name, _ in CASES} == set(FIELDS)
    known = {option.name for option in dataclasses.fields(DriftOptions)}
    assert all(field.options <= known for field in FIELDS.values())


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
@pytest.mark.parametrize("guided", [False, True])
def test_a_field_is_its_formula(name, options, guided):
    """With a batch of its own as negatives, with the samples, and with their halves."""
    x, y, z, o = draw(p=6, m=6, u=6) if name == "sliced" else draw()
    o, alpha = (o, 2.5) if guided else (None, 1.0)
    for kind in FIELDS[name].negatives:
        fresh = z if kind == "fresh" else None
        found = velocity(name, x, y, fresh, o, alpha=alpha, negatives=kind, **options)
        targets = x if fresh is None else fresh
        wanted = expected(name, x, y, targets, o, 0.4, alpha, kind, **options)
        np.testing.assert_allclose(found, wanted, err_msg=kind, **CLOSE)


ANTI_SYMMETRIC = [(n, o) for n, o in CASES if n not in ("sliced", "fair_energy")]


@pytest.mark.parametrize(("name", "options"), ANTI_SYMMETRIC, ids=str)
def test_a_swapping_the_two_sides_flips_the_field(name, options):
    x, y, z, _ = draw(1, p=5, m=7)
    there, back = velocity(name, x, y, z, **options), velocity(name, x, z, y, **options)
    np.testing.assert_allclose(there, -back, **CLOSE)


@pytest.mark.parametrize(("name", "options"), ANTI_SYMMETRIC, ids=str)
def test_z_equal_sides_give_nothing(name, options):
    x, y, *_ = draw(2)
    np.testing.assert_allclose(velocity(name, x, y, y, **options), 0, atol=1e-12)
    if "kept" in FIELDS[name].negatives and "neighbours" not in options:
        found = velocity(name, x, x, negatives="kept", **options)
        np.testing.assert_allclose(found, 0, atol=1e-9)


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_p_order_does_not_matter(name, options):
    x, y, z, o = draw(3)
    z = z if "fresh" in FIELDS[name].negatives else None
    before = velocity(name, x, y, z, o, alpha=2.0, **options)
    order = np.random.default_rng(0).permutation(len(x))
    back = None if z is None else z[::-1]
    moved = velocity(name, x[order], y[::-1], back, o[::-1], alpha=2.0, **options)
    np.testing.assert_allclose(moved, before[order], **CLOSE)


@pytest.mark.parametrize(("name", "options"), [c for c in CASES if c[0] != "sliced"], ids=str)
def test_r_the_field_turns_and_shifts_with_its_inputs(name, options):
    sets = draw(4)
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    shift = np.array([3.0, -1.0, 2.0])
    before = velocity(name, *sets, alpha=2.0, **options)
    after = velocity(name, *(a @ turn + shift for a in sets), alpha=2.0, **options)
    np.testing.assert_allclose(after, before @ turn, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(("name", "options"), ANTI_SYMMETRIC, ids=str)
def test_d_doubling_both_sides_leaves_the_direction(name, options):
    if options.get("neighbours") or name == "bias_corrected":
        pytest.skip("the nearest targets and the correction for few targets count them")
    x, y, z, _ = draw(5)
    iterations = {"iterations": 200} if FIELDS[name].reads[-1:] == ("iterations",) else {}
    options = options | iterations
    once = velocity(name, x, y, z, **options)
    twice = velocity(name, x, np.repeat(y, 2, axis=0), np.repeat(z, 2, axis=0), **options)
    factor = 2 if name == "mean_shift" and "combine" not in options else 1
    np.testing.assert_allclose(twice, factor * once, rtol=1e-7, atol=1e-9)


CONSERVATIVE = [
    ("kernel_gradient", {}),
    ("kernel_gradient", {"kernel": "gaussian"}),
    ("sharp", {}),
    ("sharp", {"kernel": "gaussian"}),
    ("energy", {}),
    ("mmd", {}),
    ("w_flow", {"iterations": 400}),
]


@pytest.mark.parametrize(("name", "options"), CONSERVATIVE, ids=str)
def test_c_the_field_of_one_sample_is_a_gradient(name, options):
    """Its Jacobian in one sample, the others fixed, is symmetric."""
    x, y, z, _ = draw(6)
    full = DriftOptions((0.4,), field=name, negatives="fresh", **options)
    with enable_x64(True):
        x, y, z = (jnp.asarray(a) for a in (x, y, z))

        def of_first(first):
            return drifting_velocity(x.at[0].set(first), y, z, options=full)[0, 0]

        jacobian = np.asarray(jax.jit(jax.jacobian(of_first))(x[0]))
    np.testing.assert_allclose(jacobian, jacobian.T, atol=1e-7 * np.abs(jacobian).max())


def test_the_mean_shift_of_the_laplacian_kernel_is_no_gradient():
    x, y, z, _ = draw(6)
    options = DriftOptions((0.4,), 0.0, normalize="targets", combine="separate", negatives="fresh")
    with enable_x64(True):
        x, y, z = (jnp.asarray(a) for a in (x, y, z))

        def of_first(first):
            return drifting_velocity(x.at[0].set(first), y, z, options=options)[0, 0]

        jacobian = np.asarray(jax.jit(jax.jacobian(of_first))(x[0]))
    assert np.abs(jacobian - jacobian.T).max() > 1e-2 * np.abs(jacobian).max()


@pytest.mark.parametrize(
    ("name", "value", "options"),
    [
        ("mean_shift", 1, {}),
        ("mean_shift", 2, {"combine": "separate"}),
        ("sinkhorn", 2, {}),
        ("w_flow", 2, {}),
        ("kernel_gradient", 2, {}),
        ("sharp", 1, {}),
        ("energy", 2, {}),
    ],
    ids=str,
)
def test_the_tiny_case(name, value, options):
    """x = 0 between y = 1 and z = -1, one of each, τ = 1."""
    x, y, z = (np.array([[a]]) for a in (0.0, 1.0, -1.0))
    np.testing.assert_allclose(velocity(name, x, y, z, tau=1.0, **options), [[value]], rtol=1e-12)


def test_transport_to_a_shifted_batch_is_the_shift():
    """y = z + b gives V = b at every x, for converged plans of the squared cost."""
    _, _, z, _ = draw(7, m=8)
    x, b = draw(8, g=8)[0], np.array([0.3, -0.2, 0.5])
    found = velocity("w_flow", x, z + b, z, iterations=2000)
    np.testing.assert_allclose(found, np.broadcast_to(b, x.shape), atol=1e-6)


def test_a_plan_of_two_points_has_its_closed_value():
    """Sets {0, 1} to themselves: T(0) = k/(1 + k), k = exp(-1/(2ε))."""
    x, eps = np.array([[0.0], [1.0]]), 0.3
    found = velocity("w_flow", x, np.zeros((1, 1)), x, tau=eps, iterations=500)
    k = np.exp(-1 / (2 * eps))
    np.testing.assert_allclose(-found[0, 0], k / (1 + k), rtol=1e-8)


def test_limits_of_the_regularisation():
    x, y, *_ = draw(9)
    means = velocity("w_flow", x, y, np.zeros((1, 3)), tau=1e6)
    np.testing.assert_allclose(means, np.broadcast_to(y.mean(0), x.shape), atol=1e-4)
    own = velocity("w_flow", x, np.zeros((1, 3)), x, tau=1e-3, iterations=50)
    np.testing.assert_allclose(-own, x, atol=1e-6)


def test_plans_of_equal_sets_balance():
    """The mean of V over x is mean y - mean z."""
    x, y, z, _ = draw(10, g=6, p=6, m=6)
    found = velocity("w_flow", x, y, z, iterations=3000)
    np.testing.assert_allclose(found.mean(0), y.mean(0) - z.mean(0), atol=1e-7)


def test_a_plan_in_float32_is_that_of_logarithms():
    """Down to ε of a hundredth of the mean cost, and with a target that is far from all."""
    rng = np.random.default_rng(11)
    x, s = rng.normal(size=(32, 2)), rng.normal(size=(32, 2))
    s[0] = (6.0, 6.0)
    r = np.linalg.norm(x[:, None] - s[None], axis=-1) ** 2
    cost = r / r.mean() / 0.01
    wanted = written_out.plan(cost, np.zeros(r.shape, bool), np.ones(32), 10)
    wanted /= wanted.sum(1, keepdims=True)
    acts = np.ones(r.shape, bool)
    found = jax.jit(lambda m, b: transport.plan_means(m, acts, b, 10))(
        jnp.float32(-cost), jnp.ones(32)
    )
    np.testing.assert_allclose(found @ s, wanted @ s, atol=2e-4)


@pytest.mark.parametrize("iterations", [10, 25, 100])
@pytest.mark.parametrize("eps", [0.02, 0.01])
def test_a_plan_moves_mass_between_clusters(iterations, eps):
    """Of 32 samples 31 lie by one half of the targets: half of them have to go to the other."""
    rng = np.random.default_rng(17)
    centres = np.array([[0.0, 0.0], [4.0, 0.0]])
    x = centres[[0] * 31 + [1]] + 0.3 * rng.normal(size=(32, 2))
    s = centres[[0] * 16 + [1] * 16] + 0.3 * rng.normal(size=(32, 2))
    r = np.linalg.norm(x[:, None] - s[None], axis=-1) ** 2
    cost, acts = r / r.mean() / eps, np.ones(r.shape, bool)
    wanted = written_out.plan(cost, ~acts, np.ones(32), iterations)
    wanted /= wanted.sum(1, keepdims=True)
    found = jax.jit(lambda m, b: transport.plan_means(m, acts, b, iterations))(
        jnp.float32(-cost), jnp.ones(32)
    )
    np.testing.assert_allclose(found @ s, wanted @ s, atol=2e-2)


@pytest.mark.parametrize("options", [{}, {"normalize": "targets"}, {"normalize": "none"}], ids=str)
@pytest.mark.parametrize("name", ["mean_shift", "bias_corrected"])
def test_a_side_far_away_keeps_its_shares(name, options):
    """Collapsed samples are drawn to targets that float32 cannot see from there."""
    rng = np.random.default_rng(18)
    x = np.float32(1e-3 * rng.normal(size=(16, 2)))
    y = np.float32(rng.normal(size=(16, 2)) + np.array([8.0, 0.0]))
    if name == "mean_shift":
        options = options | {"combine": "separate"}
    full = DriftOptions((0.02,), 0.0, field=name, **options)
    v = compiled(full)(jnp.asarray(x), jnp.asarray(y))[0]
    assert (np.asarray(v)[:, 0] > 5).all()


def test_a_row_of_one_sample_is_guided_linearly():
    x, y, _, o = draw(19, g=1)
    for name in ("kernel_gradient", "energy"):
        plain, guided = (velocity(name, x, y, None, o, alpha=a, negatives="own") for a in (1, 3))
        assert np.abs(guided - plain).max() > 0.1


@pytest.mark.parametrize("name", ["w_flow", "kernel_gradient", "energy", "fair_energy", "mmd"])
def test_guidance_vanishes_where_it_must(name):
    """At α = 1 unconditional samples do nothing; where they are y itself, α does nothing."""
    x, y, z, o = draw(12)
    plain = velocity(name, x, y, z)
    np.testing.assert_allclose(velocity(name, x, y, z, o, alpha=1.0), plain, **CLOSE)
    np.testing.assert_allclose(velocity(name, x, y, z, y, alpha=3.0), plain, **CLOSE)


def test_sharp_is_the_gradient_of_a_log_density():
    """V = Σk(y - x)/Σh - …, h = τ(r + τ)exp(-r/τ): ∇log Σh of y less that of z."""
    x, y, z, _ = draw(13)
    tau, d = 0.4, x.shape[1]

    def log_density(point, s):
        r = np.sqrt(np.sum((s - point) ** 2, axis=1)) / np.sqrt(d)
        return np.log(np.sum(tau * (r + tau) * np.exp(-r / tau)))

    step, found = 1e-6, velocity("sharp", x, y, z, tau=tau)
    for axis in range(d):
        e = step * np.eye(d)[axis]
        slope = [(log_density(x[0] + e, s) - log_density(x[0] - e, s)) / (2 * step) for s in (y, z)]
        np.testing.assert_allclose(found[0, axis] / d, slope[0] - slope[1], rtol=1e-6)


def test_corrected_weights_are_a_convex_hull():
    x, y, *_ = draw(14)
    y = y + np.array([10.0, 0, 0])
    found = velocity("bias_corrected", x, y, np.zeros((1, 3)), tau=0.5)
    assert (found[:, 0] > y[:, 0].min()).all() and (found[:, 0] < y[:, 0].max()).all()


@pytest.mark.parametrize("name", sorted(set(FIELDS) - {"sliced"}))
def test_coinciding_and_distant_sets_stay_finite(name):
    """All sets at one point, one outlier, and a single sample without another as its negative."""
    same = np.zeros((4, 3), np.float32)
    far = np.concatenate([same, np.full((1, 3), 1e4, np.float32)])
    for x, y, o in ((same, same, same), (same, far, far), (same[:1], far, same[:1])):
        for tau in (0.02, 10.0):
            negatives = "own" if "own" in FIELDS[name].negatives else "default"
            options = DriftOptions((tau,), 0.0, field=name, negatives=negatives)
            v = compiled(options)(*map(jnp.asarray, (x, y)), None, jnp.asarray(o), cfg_scale=2.0)
            assert np.isfinite(v).all(), (tau, x.shape)


def test_lookahead_without_a_term_is_its_host_and_with_one_drifts_on():
    x, y, z, _ = draw(15)
    host = velocity("mean_shift", x, y, z, combine="separate")
    options = DriftOptions(
        (0.4,), 0.0, combine="separate", negatives="fresh", lookahead=1, lookahead_stride=0.5
    )
    with enable_x64(True):
        first, second = compiled(options)(*map(jnp.asarray, (x, y, z)))
    moved = x + 0.5 * host
    np.testing.assert_allclose(first, host, **CLOSE)
    np.testing.assert_allclose(
        second, velocity("mean_shift", moved, y, z, combine="separate"), **CLOSE
    )
    assert drift_names(options) == ("0.4", "0.4+1")


def test_lookahead_moves_the_samples_as_negatives_too():
    x, y, *_ = draw(16)
    host = velocity("energy", x, y, negatives="kept")
    directions = []
    for s in (y, x):
        r = np.linalg.norm(x[:, None] - s[None], axis=-1)
        w = np.where(r > 0, 1 / np.where(r > 0, r, 1), 0)
        directions.append((w / w.sum(1, keepdims=True)) @ s)
    moved = x + directions[0] - directions[1]
    with enable_x64(True):
        options = DriftOptions((0.4,), field="energy", lookahead=1)
        first, second = compiled(options)(jnp.asarray(x), jnp.asarray(y))
    np.testing.assert_allclose(first, host, **CLOSE)
    np.testing.assert_allclose(second, velocity("energy", moved, y, negatives="kept"), **CLOSE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"field": "w_flow", "combine": "separate"}, "'w_flow' does not read combine"),
        ({"field": "mean_shift", "iterations": 3}, "'mean_shift' does not read iterations"),
        ({"field": "energy", "annealed": True}, "'energy' does not read annealed"),
        ({"field": "sliced", "lookahead": 1}, "'sliced' does not read lookahead"),
        ({"field": "sliced", "negatives": "kept"}, "takes negatives of own; found 'kept'"),
        ({"field": "mmd", "lookahead_stride": 0.5}, "lookahead_stride needs lookahead"),
        ({"field": "sliced", "measure_reach": True}, "'sliced' does not read measure_reach"),
        ({"lookahead": 1, "measure_reach": True}, "measure_reach needs lookahead of 0; found 1"),
        ({"field": "drift"}, "field must be one of mean_shift, .*; found 'drift'"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        check_options(DriftOptions(**options))


def test_sets_that_do_not_fit_are_refused():
    x, y, z, _ = draw()
    with pytest.raises(ValueError, match="z is for negatives 'fresh' alone; found 'own'"):
        drifting_velocity(x, y, z, options=DriftOptions())
    with pytest.raises(ValueError, match=r"y must be \[n, 3\], not empty; found \(5, 2\)"):
        drifting_velocity(x, y[:, :2], options=DriftOptions())
    with pytest.raises(ValueError, match="needs a key"):
        drifting_velocity(x, y, options=DriftOptions(field="sliced"))
