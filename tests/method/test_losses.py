"""The loss against reference numbers, float64 NumPy, its gradient (36), and its properties."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from read_release import load

from drifting_jax.compatibility import enable_x64
from drifting_jax.distributed.meshes import BATCH_AXES, make_mesh
from drifting_jax.method import losses
from drifting_jax.method.feature_losses import (
    FeatureSets,
    feature_drifting_loss,
    loss_by_previous,
)
from drifting_jax.method.features import joint_features, multiscale_features
from drifting_jax.method.fields.options import DriftOptions
from drifting_jax.method.losses import drifting_loss

TEMPERATURES = (0.02, 0.05, 0.2)
DRAWN = settings(max_examples=15, deadline=None)
SEEDS = st.integers(0, 2**31 - 1)
LOSS = jax.jit(drifting_loss, static_argnames="options")
WITH_GRADIENT = jax.jit(jax.value_and_grad(drifting_loss, has_aux=True), static_argnames="options")
CASES = load("A_drift_loss.npz")
# In these the float32 reference is itself off: they are judged by its float64 restatement alone.
ILL_CONDITIONED = {"near_duplicates", "gen_eq_pos", "offset_mean_relu", "one_gen_one_pos"}


def softmax(a, axis):
    e = np.exp(a - a.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def expected_loss(gen, pos, neg=None, w_gen=None, w_pos=None, w_neg=None, floor=1e-6):
    """[c, g, t, d] in float64: loss, S, raw drift mean squares, and V summed over temperatures."""
    _, g, _, d = gen.shape
    neg = gen[:, :0] if neg is None else neg
    sets = [gen, neg, pos]
    weights = [
        np.ones(a.shape[:2]) if w is None else w
        for a, w in zip(sets, (w_gen, w_neg, w_pos), strict=True)
    ]
    y = np.concatenate(sets, 1).transpose(0, 2, 1, 3)  # [c, t, n, d]
    w = np.concatenate(weights, 1)[:, None, None, :]
    x = gen.transpose(0, 2, 1, 3)
    r = np.sqrt(np.maximum(((x[:, :, :, None] - y[:, :, None]) ** 2).sum(-1), 1e-8))
    scale = (r * w).sum() / np.broadcast_to(w, r.shape).sum()
    r = r / max(scale, 1e-3)
    r[..., np.arange(g), np.arange(g)] += 100
    y = y / max(scale / np.sqrt(d), 1e-3)
    m = g + neg.shape[1]
    squares, total = [], 0
    for temperature in TEMPERATURES:
        a = softmax(-r / temperature, -1) * softmax(-r / temperature, -2)
        a = np.sqrt(np.maximum(a, floor)) * w
        a_neg, a_pos = a[..., :m], a[..., m:]
        v = (a_pos * a_neg.sum(-1, keepdims=True)) @ y[:, :, m:]
        v = v - (a_neg * a_pos.sum(-1, keepdims=True)) @ y[:, :, :m]
        squares.append((v**2).mean())
        total = total + v / np.sqrt(max(squares[-1], 1e-8))
    return (total**2).mean(), scale, np.array(squares), total.transpose(0, 2, 1, 3)


def draw(seed, c=2, g=5, p=4, u=3, t=3, d=6):
    rng = np.random.default_rng(seed)
    gen, pos, neg = (rng.normal(size=(c, n, t, d)) for n in (g, p, u))
    return gen, pos + 0.5, neg, rng.uniform(0.2, 2, size=(c, u))


@pytest.mark.parametrize("case", CASES["case_names"])
def test_reference_numbers(case):
    def entry(name):
        return CASES[f"{case}/{name}"] if f"{case}/{name}" in CASES.files else None

    def feature(name):
        return None if entry(name) is None else jnp.asarray(entry(name))[:, :, None]

    temperatures = tuple(float(r) for r in entry("R_list"))
    (value, statistics), gradient = WITH_GRADIENT(
        feature("gen"),
        feature("fixed_pos"),
        feature("fixed_neg"),
        generated_weight=entry("weight_gen"),
        positive_weight=entry("weight_pos"),
        unconditional_weight=entry("weight_neg"),
        options=DriftOptions(temperatures),
    )
    prefixes = ["f64/"] if case in ILL_CONDITIONED else ["f64/", ""]
    for prefix in prefixes:
        np.testing.assert_allclose(value, entry(f"{prefix}loss").mean(), rtol=1e-4)
        np.testing.assert_allclose(
            statistics.distance_scale, entry(f"{prefix}info/scale"), rtol=1e-4
        )
        raw = [entry(f"{prefix}info/loss_{t:g}") for t in temperatures]
        np.testing.assert_allclose(statistics.drift_mean_square, raw, rtol=2e-4)
        expected = entry(f"{prefix}grad_gen")[:, :, None]
        error = np.linalg.norm(gradient - expected) / np.linalg.norm(expected)
        assert error < 1e-4, error


def test_matches_numpy_over_rows_locations_weights_and_negatives():
    gen, pos, neg, weight = draw(0)
    with enable_x64(True):
        value, statistics = LOSS(gen, pos, neg, unconditional_weight=weight)
    expected, scale, squares, _ = expected_loss(gen, pos, neg, w_neg=weight)
    assert value.dtype == np.float64
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    np.testing.assert_allclose(statistics.distance_scale, scale, rtol=1e-12)
    np.testing.assert_allclose(statistics.drift_mean_square, squares, rtol=1e-11)
    value, statistics = LOSS(*(np.float32(a) for a in (gen, pos, neg)), unconditional_weight=weight)
    assert value.dtype == np.float32
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_gradient_is_that_of_the_frozen_target_and_none_reaches_the_rest():
    gen, pos, neg, weight = draw(1)

    def loss(gen, pos, neg, weight):
        return drifting_loss(gen, pos, neg, unconditional_weight=weight)[0]

    with enable_x64(True):
        gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))(gen, pos, neg, weight)
    _, scale, _, total = expected_loss(gen, pos, neg, w_neg=weight)
    expected = -2 * total / (scale / np.sqrt(gen.shape[-1]) * gen.size)  # (36)
    np.testing.assert_allclose(gradients[0], expected, rtol=1e-9, atol=1e-15)
    for gradient in gradients[1:]:
        np.testing.assert_array_equal(gradient, np.zeros_like(gradient))


@pytest.mark.parametrize("apart", [0.0, 1e-4])
def test_samples_that_coincide_with_positives_drift_as_in_float64(apart):
    """Of many channels, where the distances of coinciding samples cancel."""
    gen, _, neg, weight = (np.float32(a) for a in draw(11, d=64))
    pos = gen + np.float32(apart * np.random.default_rng(0).normal(size=gen.shape))

    (value, statistics), gradient = WITH_GRADIENT(gen, pos, neg, unconditional_weight=weight)
    doubles = (a.astype(np.float64) for a in (gen, pos, neg))
    expected, scale, squares, total = expected_loss(*doubles, w_neg=weight)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(statistics.drift_mean_square, squares, rtol=2e-5)
    gradients = -2 * total / (scale / np.sqrt(gen.shape[-1]) * gen.size)
    error = np.linalg.norm(gradient - gradients) / np.linalg.norm(gradients)
    assert error < 2e-5


def test_diversity_statistics():
    gen, pos, neg, _ = draw(2)
    with enable_x64(True):
        _, statistics = LOSS(gen, pos, neg)
    x, y = (a.transpose(0, 2, 1, 3) for a in (gen, pos))
    among = np.linalg.norm(x[:, :, :, None] - x[:, :, None], axis=-1)
    np.testing.assert_allclose(
        statistics.generated_distance, among.sum() / (among.size * (1 - 1 / gen.shape[1]))
    )
    to_real = np.linalg.norm(x[:, :, :, None] - y[:, :, None], axis=-1)
    np.testing.assert_allclose(statistics.positive_distance, to_real.mean())


@DRAWN
@given(SEEDS)
def test_loss_does_not_depend_on_the_scale_or_place_of_a_feature(seed):
    gen, pos, neg, _ = draw(seed)
    with enable_x64(True):
        value, statistics = LOSS(gen, pos, neg)
        moved, other = LOSS(30 * gen + 7, 30 * pos + 7, 30 * neg + 7)
    # Own pairs stay at the clip of 1e-4, whatever the scale: that much is not invariant.
    np.testing.assert_allclose(moved, value, rtol=1e-5)
    np.testing.assert_allclose(other.drift_mean_square, statistics.drift_mean_square, rtol=1e-4)
    np.testing.assert_allclose(other.distance_scale, 30 * statistics.distance_scale, rtol=1e-4)


@DRAWN
@given(SEEDS)
def test_loss_does_not_depend_on_the_order_of_samples_rows_or_locations(seed):
    gen, pos, neg, _ = draw(seed)
    with enable_x64(True):
        value, _ = LOSS(gen, pos, neg)
        for shuffled in (
            (gen[:, ::-1], pos[:, ::-1], neg[:, ::-1]),
            (gen[::-1], pos[::-1], neg[::-1]),
            (gen[:, :, ::-1], pos[:, :, ::-1], neg[:, :, ::-1]),
        ):
            np.testing.assert_allclose(LOSS(*shuffled)[0], value, rtol=1e-10)


def test_one_temperature_gives_one_and_several_at_most_their_square():
    gen, pos, _, _ = draw(3)
    for temperature in TEMPERATURES:
        value, _ = LOSS(np.float32(gen), np.float32(pos), options=DriftOptions((temperature,)))
        np.testing.assert_allclose(value, 1.0, rtol=1e-5)
    value, _ = LOSS(np.float32(gen), np.float32(pos))
    assert 1.0 < value <= 9.0


def test_pieces_over_class_rows_equal_the_whole():
    """Three passes: sums of distances, then of squared drifts, then losses and gradients."""
    gen, pos, neg, weight = draw(4, c=4)

    def squares_of(sets, scale):
        _, means = losses.all_drifts(sets, losses.distances(sets), scale, DriftOptions())
        return means.mean_square

    @jax.jit
    def in_pieces(*arrays):
        pieces = []
        for rows in (slice(0, 1), slice(1, 4)):
            *sets, weights = (a[rows] for a in arrays)
            pieces.append(losses.make_sets(*sets, unconditional_weight=weights))
        sums = [losses.distance_sums(losses.distances(sets), sets) for sets in pieces]
        total = jax.tree.map(jnp.add, *sums)
        scale = total.distance_scale
        squares = [squares_of(sets, scale) for sets in pieces]
        squares = (squares[0] + 3 * squares[1]) / 4
        added_up = total.statistics(losses.DriftMeans(squares))
        found = [losses.drifted(sets, DriftOptions(), added_up)[:2] for sets in pieces]
        values, cotangents = zip(*found, strict=True)
        mean = (values[0] + 3 * values[1]) / 4
        gradient = jnp.concatenate([cotangents[0], 3 * cotangents[1]]) / 4
        return scale, squares, mean, gradient, jax.tree.map(lambda x: x[0], added_up)

    with enable_x64(True):
        scale, squares, mean, gradient, added_up = in_pieces(gen, pos, neg, weight)
        (whole, statistics), of_whole = WITH_GRADIENT(gen, pos, neg, unconditional_weight=weight)
    np.testing.assert_allclose(scale[0], statistics.distance_scale, rtol=1e-12)
    np.testing.assert_allclose(squares[0], statistics.drift_mean_square, rtol=1e-12)
    np.testing.assert_allclose(mean[0], whole, rtol=1e-12)
    np.testing.assert_allclose(gradient, of_whole, rtol=1e-12, atol=1e-18)
    for ours, theirs in zip(jax.tree.leaves(added_up), jax.tree.leaves(statistics), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)


@pytest.mark.parametrize("spec", [P(BATCH_AXES), P("data", "fsdp"), P(None, BATCH_AXES)], ids=str)
def test_sharded_equals_single(spec):
    mesh = make_mesh(data=4, fsdp=2)
    sets = [np.float32(a) for a in draw(5, c=8, g=8, p=8, u=8)]

    def step(gen, pos, neg, weight):
        return WITH_GRADIENT(gen, pos, neg, unconditional_weight=weight)

    (value, statistics), gradient = step(*sets)
    sharded = [jax.device_put(a, NamedSharding(mesh, spec)) for a in sets]
    (value_s, statistics_s), gradient_s = step(*sharded)
    np.testing.assert_allclose(value_s, value, rtol=1e-5)
    np.testing.assert_allclose(gradient_s, gradient, atol=1e-5 * np.abs(gradient).max())
    for a, b in zip(jax.tree.leaves(statistics_s), jax.tree.leaves(statistics), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


@pytest.mark.parametrize("magnitude", [1e-6, 1e-3, 1.0, 1e6])
@pytest.mark.parametrize("kind", ["duplicates", "identical sets", "one sample", "one channel"])
def test_finite_for_degenerate_input(magnitude, kind):
    gen, pos, neg, _ = (np.float32(magnitude * a) for a in draw(6))
    if kind == "duplicates":
        gen[:] = gen[:1, :1, :1]
        pos[:] = gen[0, 0, 0]
        neg[:] = gen[0, 0, 0]
    elif kind == "identical sets":
        pos, neg = gen.copy(), gen.copy()
    elif kind == "one sample":
        gen, pos, neg = gen[:1, :1, :1], pos[:1, :1, :1], None
    else:
        gen, pos, neg = gen[..., :1], pos[..., :1], neg[..., :1]

    (value, statistics), gradient = WITH_GRADIENT(gen, pos, neg)
    for a in (value, gradient, *jax.tree.leaves(statistics)):
        assert np.isfinite(a).all()


def test_bfloat16_features_are_compared_in_float32():
    gen, pos, _, _ = (jnp.asarray(a, jnp.bfloat16) for a in draw(7))
    (value, statistics), gradient = WITH_GRADIENT(gen, pos)
    expected, scale, _, _ = expected_loss(*(np.asarray(a, np.float64) for a in (gen, pos)))
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, expected, rtol=1e-4)
    np.testing.assert_allclose(statistics.distance_scale, scale, rtol=1e-5)
    assert gradient.dtype == jnp.bfloat16


def test_sum_over_features_leaves_out_those_that_hardly_vary():
    gen, pos, neg, weight = (np.float32(a) for a in draw(8))
    constant = [np.full_like(a, 0.3) + 1e-7 * a for a in (gen, pos, neg)]
    features = [
        {"a": a, "b": a[:, :, :1] ** 2, "still": b}
        for a, b in zip((gen, pos, neg), constant, strict=True)
    ]

    def loss(generated):
        return feature_drifting_loss(generated, *features[1:], unconditional_weight=weight)

    (value, statistics), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(features[0])
    parts = [LOSS(*(f[name] for f in features), unconditional_weight=weight)[0] for name in "ab"]
    np.testing.assert_allclose(value, sum(parts), rtol=1e-5)
    assert statistics["still"].is_degenerate
    assert not statistics["a"].is_degenerate
    np.testing.assert_array_equal(gradient["still"], np.zeros_like(gen))
    assert np.abs(gradient["a"]).max() > 0


def test_the_loss_of_many_features_is_their_weighted_sum():
    sets = [draw(seed)[:3] for seed in (3, 4, 5)]  # of equal channels: one computation has them all
    weights = {"b": 0.25, "c": 3.0}
    features = [dict(zip("abc", of_all, strict=True)) for of_all in zip(*sets, strict=True)]

    def loss(generated):
        return feature_drifting_loss(generated, *features[1:], weights=weights)

    def by_previous(statistics):
        sets = FeatureSets(*features, weights=tuple(weights.items()))
        return loss_by_previous(sets, DriftOptions(), statistics)[:2]

    with enable_x64(True):
        (value, statistics), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(
            features[0]
        )
        one_pass = jax.jit(by_previous)(statistics)
    np.testing.assert_allclose(one_pass[0], value, rtol=1e-12)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-9), one_pass[1], gradients)
    expected = 0
    for name, (gen, pos, neg) in zip("abc", sets, strict=True):
        alone, scale, _, total = expected_loss(gen, pos, neg)
        weight = {"a": 1.0, "b": 0.25, "c": 3.0}[name]
        expected += weight * alone
        wanted = -2 * weight * total / (scale / np.sqrt(gen.shape[-1]) * gen.size)  # (36)
        np.testing.assert_allclose(gradients[name], wanted, rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(value, expected, rtol=1e-12)


def test_joint_statistics_of_a_map_are_one_feature_with_one_scale():
    """Of two encoders, whose losses are averaged."""
    rng = np.random.default_rng(6)

    def statistics(maps):
        """All locations, then global and 2x2 means and stds, of [c, n, 4, 4, d]."""
        c, n, _, _, d = maps.shape
        found = [maps.reshape(c, n, 16, d)]
        for squares in (maps.reshape(c, n, 1, 4, 1, 4, d), maps.reshape(c, n, 2, 2, 2, 2, d)):
            mean = squares.mean((3, 5)).reshape(c, n, -1, d)
            found += [mean, np.sqrt(squares.var((3, 5)) + 1e-6).reshape(c, n, -1, d)]
        return np.concatenate(found, axis=2)

    def features(maps):
        of_encoders = {}
        for name, x in maps.items():
            found = multiscale_features({"map": x.reshape(-1, *x.shape[2:])}, patch_sizes=(2,))
            joint = joint_features(found)["map/joint"]
            of_encoders[name] = joint.reshape(*x.shape[:2], *joint.shape[1:])
        return of_encoders

    def loss(*groups):
        weights = {"a": 0.5, "b": 0.5}
        return feature_drifting_loss(*(features(maps) for maps in groups), weights=weights)

    groups = [
        {"a": rng.normal(size=(2, n, 4, 4, 3)) + shift, "b": rng.normal(size=(2, n, 4, 4, 5))}
        for n, shift in ((5, 0), (4, 0.5), (3, 0.2))
    ]
    with enable_x64(True):
        value, found = jax.jit(loss)(*groups)
    expected = 0
    for name in "ab":
        alone, scale, squares, _ = expected_loss(*(statistics(maps[name]) for maps in groups))
        expected += alone / 2
        np.testing.assert_allclose(found[name].distance_scale, scale, rtol=1e-11)
        np.testing.assert_allclose(found[name].drift_mean_square, squares, rtol=1e-10)
    np.testing.assert_allclose(value, expected, rtol=1e-11)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positive": np.zeros((2, 4, 3, 5))}, "positive must be"),
        ({"positive": np.zeros((2, 0, 3, 6))}, "positive is empty"),
        ({"unconditional": np.zeros((1, 3, 3, 6))}, "unconditional must be"),
        ({"generated": np.zeros((2, 5, 6))}, "generated must be"),
        ({"unconditional_weight": np.ones((2, 4))}, r"unconditional_weight must be \(2, 3\)"),
    ],
)
def test_input_that_does_not_fit(change, message):
    gen, pos, neg, _ = draw(9)
    arguments = {"generated": gen, "positive": pos, "unconditional": neg} | change
    with pytest.raises(ValueError, match=message):
        drifting_loss(**arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperatures": ()}, "temperatures must be one or more"),
        ({"temperatures": (0.0,)}, "temperatures must be one or more"),
        ({"kernel": "box"}, "kernel must be one of laplacian, gaussian; found 'box'"),
        ({"normalize": "rows"}, "normalize must be one of"),
        ({"combine": "sum"}, "combine must be one of"),
    ],
)
def test_options_that_make_no_sense(change, message):
    with pytest.raises(ValueError, match=message):
        DriftOptions(**change)


def test_an_unknown_field():
    gen, pos, _, _ = draw(9)
    with pytest.raises(ValueError, match=r"field must be one of mean_shift, .*; found 'gravity'"):
        drifting_loss(gen, pos, options=DriftOptions(field="gravity"))


def test_features_that_differ_or_lack():
    gen, pos, _, _ = draw(9)
    with pytest.raises(ValueError, match="positive and generated must have the same features"):
        feature_drifting_loss({"a": gen}, {"b": pos})
    with pytest.raises(ValueError, match="at least one feature"):
        feature_drifting_loss({}, {})
    with pytest.raises(ValueError, match=r"that of a feature, one of \['a'\]; found \['b'\]"):
        feature_drifting_loss({"a": gen}, {"a": pos}, weights={"b": 2.0})


def test_every_product_is_lowered_at_highest_precision():
    x = jax.ShapeDtypeStruct((2, 4, 3, 64), jnp.float32)
    gradient = jax.jit(jax.value_and_grad(lambda *sets: drifting_loss(*sets)[0]))
    products = [line for line in gradient.lower(x, x, x).as_text().splitlines() if "dot_g" in line]
    assert len(products) == 2  # distances, and drifts of all temperatures
    assert all("HIGHEST, HIGHEST" in line for line in products)


def test_a_feature_of_more_numbers_than_an_int32_counts():
    x = jax.ShapeDtypeStruct((128, 64, 1024, 640), jnp.float32)
    loss, _ = jax.eval_shape(drifting_loss, x, x, x)
    assert loss.shape == ()
