"""The loss with every field: scale, norms, guidance, parts of a batch, and what a field needs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import written_out_fields as written_out

from drifting_jax.compatibility import enable_x64
from drifting_jax.method import feature_losses, guidance, losses
from drifting_jax.method.feature_losses import FeatureSets
from drifting_jax.method.fields.options import DriftOptions
from drifting_jax.method.fields.sets import acting_negatives
from drifting_jax.method.fields.table import FIELDS, negatives_of
from drifting_jax.method.losses import drifting_loss

C, T, D = 4, 2, 3
ALPHA = np.array([1.0, 1.5, 2.0, 3.0])
CASES = [
    DriftOptions((0.1, 0.5), 0.0),
    DriftOptions((0.1, 0.5), 0.0, negatives="two_fold"),
    DriftOptions((0.3,), 0.0, field="bias_corrected"),
    DriftOptions((0.3,), field="kernel_gradient"),
    DriftOptions((0.3,), field="sharp", negatives="two_fold"),
    DriftOptions((0.3,), field="kl_chi2"),
    DriftOptions((0.1, 0.5), field="sinkhorn", cost="distance"),
    DriftOptions((0.05,), field="w_flow"),
    DriftOptions((0.05,), field="w_flow", negatives="two_fold", iterations=1),
    DriftOptions((1.0,), field="energy", neighbours=2),
    DriftOptions((1.0,), field="fair_energy"),
    DriftOptions((0.3,), field="mmd", negatives="fresh"),
]
SIZES = {"generated": 6, "positive": 5, "unconditional": 3, "fresh": 6}


LOSS = jax.jit(drifting_loss, static_argnames="options")


def draw(options):
    rng = np.random.default_rng(0)
    names = [name for name in SIZES if name != "fresh" or negatives_of(options) == "fresh"]
    return {name: rng.normal(size=(C, SIZES[name], T, D)) for name in names}


def weight(options):
    acting = acting_negatives(SIZES["generated"], negatives_of(options))
    w = guidance.unconditional_weight(ALPHA, negatives=acting, unconditional=3)
    return np.broadcast_to(np.asarray(w)[:, None], (C, 3))


def expected_scale(sets, options):
    """S, the weighted mean distance, or S₂, the root mean square one to all but `unconditional`."""
    x, rms = sets["generated"], FIELDS[options.field].scale == "rms"
    groups = {"generated": np.ones((C, 6)), "positive": np.ones((C, 5))}
    if not rms:
        groups["unconditional"] = weight(options)
    if "fresh" in sets:
        groups["fresh"] = np.ones((C, 6))
        if not rms:
            del groups["generated"]
    total, count = 0.0, 0.0
    for name, w in groups.items():
        r = np.linalg.norm(x[:, :, None] - sets[name][:, None], axis=-1)  # [c, g, n, t]
        if name == "generated" and negatives_of(options) != "kept":
            r = np.maximum(r, 1e-4)  # as in the released code
        total += np.sum(w[:, None, :, None] * (r**2 if rms else r))
        count += np.sum(w) * x.shape[1] * T
    return np.sqrt(total / count) if rms else total / count


def expected_loss(sets, options):
    scale = expected_scale(sets, options)
    kind = negatives_of(options)
    reads = {"combine", "cost", "iterations", "neighbours"} & set(FIELDS[options.field].reads)
    parameters = {name: getattr(options, name) for name in reads}
    total = 0
    for tau in options.temperatures:
        v = np.zeros_like(sets["generated"])
        for row in range(C):
            for t in range(T):
                scaled = {name: a[row, :, t] / (scale / np.sqrt(D)) for name, a in sets.items()}
                v[row, :, t] = getattr(written_out, options.field)(
                    scaled["generated"],
                    scaled["positive"],
                    scaled.get("fresh", scaled["generated"]),
                    scaled["unconditional"],
                    tau,
                    ALPHA[row],
                    kind,
                    **parameters,
                )
        total = total + v / np.sqrt(np.mean(v**2))
    return np.mean(total**2), scale, total


@pytest.mark.parametrize("options", CASES, ids=lambda o: f"{o.field}-{o.negatives}")
def test_the_loss_of_a_field(options):
    """Its value, S, and its gradient (36): -2·ΣV over S/√d and the number of entries."""
    sets = draw(options)
    with enable_x64(True):
        arrays = {name: jnp.asarray(a) for name, a in sets.items()}

        def loss(generated):
            return drifting_loss(
                generated,
                arrays["positive"],
                arrays["unconditional"],
                arrays.get("fresh"),
                unconditional_weight=jnp.asarray(weight(options)),
                options=options,
            )

        (found, statistics), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(
            arrays["generated"]
        )
    value, scale, total = expected_loss(sets, options)
    np.testing.assert_allclose(statistics.distance_scale, scale, rtol=1e-7)
    np.testing.assert_allclose(found, value, rtol=1e-6)
    wanted = -2 * total / (scale / np.sqrt(D)) / total.size
    np.testing.assert_allclose(gradient, wanted, rtol=1e-5, atol=1e-7 * np.abs(wanted).max())


PIECES = [
    *CASES,
    DriftOptions((1.0,), field="sliced"),
    DriftOptions((0.3,), 0.0, lookahead=1, combine="separate"),
    DriftOptions((0.2,), 0.0, annealed=True),
    DriftOptions((0.02, 0.5), measure_reach=True),
]


@pytest.mark.parametrize("options", PIECES, ids=lambda o: f"{o.field}-{o.negatives}-{o.lookahead}")
def test_a_batch_in_pieces_has_the_loss_of_the_whole(options):
    sets = draw(options)
    with enable_x64(True):
        key, progress = jax.random.key(0), jnp.float64(0.25)

        def of_rows(sets, weights, rows):
            features = {name: {"a": a[rows]} for name, a in sets.items()}
            return FeatureSets(
                **features, unconditional_weight=weights[rows], key=key, progress=progress
            )

        # The sets are arguments: the compiler would compute what has constants alone.
        @jax.jit
        def in_pieces(*arguments):
            pieces = [of_rows(*arguments, slice(0, 1)), of_rows(*arguments, slice(1, 4))]
            shares = np.array([0.25, 0.75])
            sums = [feature_losses.distance_sums(piece, options)["a"] for piece in pieces]
            total = jax.tree.map(jnp.add, *sums)
            scale = {"a": total.distance_scale}
            squares = [
                jax.tree.map(
                    lambda x, share=share: share * x,
                    feature_losses.drift_means(piece, scale, options)["a"],
                )
                for piece, share in zip(pieces, shares, strict=True)
            ]
            shared = {"a": total.statistics(jax.tree.map(jnp.add, *squares))}
            found = [feature_losses.loss_and_cotangents(p, options, shared) for p in pieces]
            cotangents = [
                share * cotangents["a"]
                for share, (_, cotangents, _) in zip(shares, found, strict=True)
            ]
            loss = shares[0] * found[0][0] + shares[1] * found[1][0]
            return loss, jnp.concatenate(cotangents), shared["a"]

        @jax.jit
        def as_whole(*arguments):
            return feature_losses.loss_and_cotangents(of_rows(*arguments, slice(0, 4)), options)

        arguments = sets, weight(options)
        loss, cotangents, shared = in_pieces(*arguments)
        whole, of_whole, statistics = as_whole(*arguments)
    np.testing.assert_allclose(loss, whole, rtol=1e-10)
    np.testing.assert_allclose(cotangents, of_whole["a"], rtol=1e-8, atol=1e-14)
    assert (shared.unreached is not None) == options.measure_reach
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-8), shared, statistics["a"])


def test_annealed_temperatures_fall_from_one_to_theirs():
    options = DriftOptions((0.04, 0.2), annealed=True)
    for progress, wanted in ((0.0, [1, 1]), (0.25, [0.2, 0.2**0.5]), (0.5, [0.04, 0.2])):
        found = losses.temperatures_at(options, jnp.float32(progress), jnp.float32)
        np.testing.assert_allclose(found, wanted, rtol=1e-6)
    with pytest.raises(ValueError, match="need the progress"):
        losses.temperatures_at(options, None, jnp.float32)


def test_negatives_that_do_not_fit_are_refused():
    x = jnp.zeros((1, 3, 1, 2))
    two_fold = DriftOptions(negatives="two_fold")
    with pytest.raises(ValueError, match="even number of generated samples; found 3"):
        drifting_loss(x, x, options=two_fold)
    with pytest.raises(ValueError, match="negatives are 'own', and there is one"):
        drifting_loss(x, x, fresh=x)
    with pytest.raises(ValueError, match="negatives are 'fresh', and there is none"):
        drifting_loss(x, x, options=dataclasses.replace(two_fold, negatives="fresh"))


@pytest.mark.parametrize("name", sorted(FIELDS))
@pytest.mark.parametrize("constant", [1.0, 3.3])
def test_samples_at_one_point_have_a_finite_loss(name, constant):
    """As a collapsed generator makes them, with a second batch at the same point."""
    rng = np.random.default_rng(1)
    same = jnp.full((2, 4, 1, 8), constant)
    other = jnp.asarray(rng.normal(size=same.shape), jnp.float32)
    options = DriftOptions((0.05,), field=name)
    loss, statistics = LOSS(
        same,
        other,
        fresh=same if negatives_of(options) == "fresh" else None,
        options=options,
        key=jax.random.key(0) if FIELDS[name].draws else None,
    )
    assert np.isfinite(loss) and loss > 0 and statistics.distance_scale > 0.1


def test_options_that_a_field_does_not_read_are_refused():
    x = jnp.zeros((1, 4, 1, 2))
    with pytest.raises(ValueError, match="'mmd' does not read combine"):
        drifting_loss(x, x, options=DriftOptions(field="mmd", combine="separate"))
    found, statistics = LOSS(x, x + 1, options=DriftOptions(field="energy"))
    assert statistics.drift_mean_square.shape == (1,) and np.isfinite(found)


def test_directions_do_not_depend_on_the_number_of_rows():
    """Features are joined in other groups where rows are few; their directions stay."""
    rng = np.random.default_rng(2)
    options = DriftOptions(field="sliced", projections=2)
    features = {str(i): rng.normal(size=(16, 16, 16, 128)).astype(np.float32) for i in range(5)}
    real = {name: x[::-1].copy() for name, x in features.items()}

    @functools.partial(jax.jit, static_argnums=0)
    def cotangents(rows):
        sets = FeatureSets(
            {name: x[:rows] for name, x in features.items()},
            {name: x[:rows] for name, x in real.items()},
            key=jax.random.key(0),
        )
        return feature_losses.loss_and_cotangents(sets, options)[1]

    many, few = cotangents(16)["3"][:1], cotangents(1)["3"]
    along = np.sum(many * few) / np.linalg.norm(many) / np.linalg.norm(few)
    np.testing.assert_allclose(along, 1, rtol=1e-4)
