"""The field against Algorithm 2 in float64 NumPy, the reference numbers, and its properties."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from read_release import load

from drifting_jax.compatibility import enable_x64
from drifting_jax.method.fields.mean_shift import drifting_field
from drifting_jax.method.fields.options import DriftOptions
from drifting_jax.method.fields.sets import DIRECT_CHANNELS, pairwise_distance

FIELD = jax.jit(drifting_field, static_argnames=("exclude_self", "options", "temperature"))
CLIPPED_DISTANCE = jax.jit(functools.partial(pairwise_distance, squared_minimum=1e-8))
DRAWN = settings(max_examples=20, deadline=None)
SEEDS = st.integers(0, 2**31 - 1)


def softmax(a, axis):
    e = np.exp(a - a.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def expected_field(
    x,
    y_pos,
    y_neg,
    temperature,
    *,
    exclude_self=False,
    floor=0.0,
    kernel="laplacian",
    normalize="both",
    combine="crossed",
    attraction=1.0,
    repulsion=1.0,
):
    """Attraction and repulsion written out pair by pair, with the -x terms of (8) and (9)."""
    y = np.concatenate([y_pos, y_neg])
    r = np.linalg.norm(x[:, None] - y[None], axis=-1)
    logits = -r / temperature if kernel == "laplacian" else -(r**2) / (2 * temperature**2)
    p = len(y_pos)
    if exclude_self:
        logits[np.arange(len(x)), p + np.arange(len(x))] = -np.inf
    if normalize == "both":
        a = np.sqrt(softmax(logits, 1) * softmax(logits, 0))
    elif normalize == "targets":
        a = softmax(logits, 1)
    else:
        a = np.exp(logits)
    a = np.maximum(a, np.sqrt(floor))
    a_pos, a_neg = a[:, :p], a[:, p:]
    if combine == "crossed":
        w_pos = a_pos * a_neg.sum(1, keepdims=True)
        w_neg = a_neg * a_pos.sum(1, keepdims=True)
    else:
        w_pos, w_neg = a_pos / a_pos.sum(1, keepdims=True), a_neg / a_neg.sum(1, keepdims=True)
    v_pos = (w_pos[..., None] * (y_pos[None] - x[:, None])).sum(1)
    v_neg = (w_neg[..., None] * (y_neg[None] - x[:, None])).sum(1)
    return attraction * v_pos - repulsion * v_neg


def draw(seed, g=6, p=5, n=7, d=3, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(k, d)).astype(dtype) for k in (g, p, n)]


def test_reference_numbers_of_algorithm_2():
    arrays = load("B_algorithm2_f64.npz")
    with enable_x64(True):
        for case in arrays["case_names"]:
            x, y_pos = arrays[f"{case}/x"], arrays[f"{case}/y_pos"]
            own = bool(arrays[f"{case}/y_neg_is_x"])
            y_neg = x if own else arrays[f"{case}/y_neg"]
            v = FIELD(x, y_pos, y_neg, temperature=float(arrays[f"{case}/T"]), exclude_self=own)
            assert v.dtype == np.float64
            np.testing.assert_allclose(v, arrays[f"{case}/V"], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kernel": "gaussian"},
        {"normalize": "targets"},
        {"normalize": "none"},
        {"combine": "separate"},
        {"attraction": 2.0},
        {"repulsion": 1.5},
        {"repulsion": 0.0},
        {"combine": "separate", "attraction": 1.5},
    ],
    ids=str,
)
def test_options_match_the_written_out_field(options):
    x, y_pos, _ = draw(0)
    with enable_x64(True):
        v = FIELD(
            x,
            y_pos,
            x,
            temperature=0.7,
            exclude_self=True,
            options=DriftOptions(affinity_floor=1e-4, **options),
        )
    expected = expected_field(x, y_pos, x, 0.7, exclude_self=True, floor=1e-4, **options)
    np.testing.assert_allclose(v, expected, rtol=1e-10, atol=1e-12)


def test_both_ways_to_a_distance_agree_with_float64():
    for d in (3, DIRECT_CHANNELS, DIRECT_CHANNELS + 1, 200):
        x, y, _ = draw(d, d=d)
        expected = np.linalg.norm(x[:, None] - y[None], axis=-1)
        offset = 100.0  # a common offset, which must not cost digits
        found = jax.jit(pairwise_distance)(np.float32(x + offset), np.float32(y + offset))
        np.testing.assert_allclose(found, expected, rtol=2e-5)


@pytest.mark.parametrize("apart", [0.0, 1e-5, 1e-3])
@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize("d", [33, 64, 640])
def test_distances_of_coinciding_samples_do_not_cancel(d, offset, apart):
    """Sets that are equal, or nearly, near the origin or far from it; a target twice."""
    rng = np.random.default_rng(d)
    y = rng.normal(size=(24, d)) + offset
    y[5] = y[7]
    x = np.float32(y + apart * rng.normal(size=y.shape))
    y = np.float32(y)
    exact = np.linalg.norm(x.astype(np.float64)[:, None] - y.astype(np.float64)[None], axis=-1)
    exact = np.maximum(exact, 1e-4)
    found = CLIPPED_DISTANCE(x, y)
    # Taking the mean off rounds each coordinate, by about 2e-7.
    np.testing.assert_allclose(found, exact, rtol=2e-6, atol=2e-7 * d**0.5)


@DRAWN
@given(SEEDS)
def test_swapping_positives_and_negatives_negates(seed):
    x, y_pos, y_neg = draw(seed, p=5, n=5)
    with enable_x64(True):
        v = FIELD(x, y_pos, y_neg, temperature=0.5)
        swapped = FIELD(x, y_neg, y_pos, temperature=0.5)
    np.testing.assert_allclose(v, -swapped, atol=1e-13)


@DRAWN
@given(SEEDS)
def test_zero_where_the_two_sets_are_the_same(seed):
    x, y, _ = draw(seed)
    with enable_x64(True):
        v = FIELD(x, y, y, temperature=0.5)
    np.testing.assert_allclose(v, np.zeros_like(v), atol=1e-13)


@DRAWN
@given(SEEDS)
def test_moves_with_permutation_translation_and_rotation(seed):
    x, y_pos, y_neg = draw(seed)
    rng = np.random.default_rng(seed)
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    shift = 10 * rng.normal(size=3)
    order = rng.permutation(len(x))
    with enable_x64(True):
        v = np.asarray(FIELD(x, y_pos, y_neg, temperature=0.5))
        moved = FIELD(
            x @ rotation + shift,
            y_pos[::-1] @ rotation + shift,
            y_neg[::-1] @ rotation + shift,
            temperature=0.5,
        )
        permuted = FIELD(x[order], y_pos, y_neg, temperature=0.5)
    np.testing.assert_allclose(moved, v @ rotation, atol=1e-12)
    np.testing.assert_allclose(permuted, v[order], atol=1e-13)


def test_vanishes_in_expectation_when_q_is_p():
    """Independent negatives: the mean over trials is 0 within four of its standard errors."""
    trials = 4000
    draws = jax.random.normal(jax.random.key(0), (trials, 3, 8, 2))
    field = jax.jit(jax.vmap(lambda s: drifting_field(s[0], s[1], s[2], temperature=0.5)))
    v = np.asarray(field(draws), np.float64)
    # Odd in both coordinates: the mean of V·x tests the strength, that of V the direction.
    strength = (v * np.asarray(draws[:, 0])).sum(-1).mean(1)
    for quantity in (*v.mean(1).T, strength):
        error = quantity.std() / np.sqrt(trials)
        assert abs(quantity.mean()) < 4 * error
    first = np.asarray(draws[0])
    apart = FIELD(first[0], first[1] + 2, first[2], temperature=0.5)
    assert np.abs(apart).mean() > 50 * np.abs(v.mean(1)).mean() / np.sqrt(trials)


def test_bias_of_excluding_self_shrinks_with_g():
    """With x its own negatives, a sample sees p but not itself in q: a pull of order 1/g."""

    def strength(g, trials):
        draws = jax.random.normal(jax.random.key(g), (trials, 2, g, 2))

        def one(s):
            v = drifting_field(s[0], s[1], s[0], temperature=0.5, exclude_self=True)
            return jnp.mean(jnp.sum(v * s[0], -1)) / jnp.mean(jnp.linalg.norm(v, axis=-1))

        return abs(float(jnp.mean(jax.jit(jax.vmap(one))(draws))))

    assert strength(64, 200) < 0.5 * strength(8, 2000)


@pytest.mark.parametrize("exclude_self", [False, True])
@pytest.mark.parametrize("kernel", ["laplacian", "gaussian"])
@pytest.mark.parametrize("normalize", ["both", "none"])
@pytest.mark.parametrize("combine", ["crossed", "separate"])
def test_finite_for_degenerate_sets(exclude_self, kernel, normalize, combine):
    options = DriftOptions(affinity_floor=0.0, kernel=kernel, normalize=normalize, combine=combine)
    field = jax.jit(
        jax.vmap(
            lambda x, y_pos: drifting_field(
                x, y_pos, x, temperature=0.05, exclude_self=exclude_self, options=options
            )
        )
    )
    for g in (1, 4):
        x = np.ones((6, g, 2), np.float32) * np.float32([1e-6, 1, 1e6] * 2)[:, None, None]
        towards = np.float32([1, 1, 1, -1, -1, -1])[:, None, None]
        assert np.isfinite(field(x, x * towards)).all()


def test_half_precision_is_computed_in_float32():
    x, y_pos, y_neg = (jnp.asarray(a, jnp.bfloat16) for a in draw(1))
    v = FIELD(x, y_pos, y_neg, temperature=0.5)
    expected = expected_field(*(np.asarray(a, np.float64) for a in (x, y_pos, y_neg)), 0.5)
    assert v.dtype == jnp.float32
    np.testing.assert_allclose(v, expected, rtol=1e-5, atol=1e-6)


def test_matmuls_are_lowered_at_highest_precision():
    x = jax.ShapeDtypeStruct((4, 64), jnp.float32)
    text = FIELD.lower(x, x, x, temperature=0.5).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert products
    assert all("HIGHEST, HIGHEST" in line for line in products)


@pytest.mark.parametrize(
    ("shapes", "options", "message"),
    [
        (((0, 2), (3, 2), (3, 2)), {}, "x must be a non-empty set"),
        (((3, 2), (0, 2), (3, 2)), {}, "y_pos must be a non-empty set"),
        (((3, 2), (3, 2), (3, 4)), {}, "y_neg must be a non-empty set"),
        (((3, 2), (3, 2), (4, 2)), {"exclude_self": True}, "exclude_self needs y_neg to be x"),
    ],
)
def test_shapes_that_do_not_fit(shapes, options, message):
    with pytest.raises(ValueError, match=message):
        drifting_field(*(np.zeros(s) for s in shapes), temperature=0.5, **options)
