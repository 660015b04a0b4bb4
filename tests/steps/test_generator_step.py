"""The steps of generator and encoder: meshes, keys, skipped steps, labels, dtypes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from drifting_jax.distributed import class_rows, meshes, transfer
from drifting_jax.method import encoders
from drifting_jax.method.fields.options import DriftOptions
from drifting_jax.method.fields.table import drift_names
from drifting_jax.models.dit import DiT
from drifting_jax.models.resnet_mae import ResNetMAE
from drifting_jax.steps import culprit, encoder_step, generator_rows, generator_step, sample_queue
from drifting_jax.steps import state as states
from drifting_jax.steps.generator_settings import GeneratorStepConfig

MESHES = {"1": (1, 1), "8x1": (8, 1), "4x2": (4, 2), "2x4": (2, 4)}
MODEL = DiT(
    image_size=4,
    in_channels=1,
    out_channels=1,
    patch_size=2,
    width=16,
    depth=1,
    num_heads=2,
    num_classes=10,
    num_context_tokens=1,
    num_style_books=2,
    styles_per_book=3,
)
SETTINGS = GeneratorStepConfig(
    labels=10,
    generated=8,
    positives=4,
    unconditional=4,
    drift=DriftOptions(temperatures=(0.05, 0.2)),
    num_steps=100,
    cfg_minimum=1.0,
    cfg_maximum=4.0,
    cfg_power=3.0,
    cfg_probability_of_one=0.0,
    ema_decays=(0.9,),
)
# Gradient descent by the raw gradient: unlike Adam's, its step shows the gradient's size.
OPTIMIZER = optax.sgd(0.1)
# Compiling takes most of the time, running next to nothing.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def _projections(frozen, images):
    patches = images.reshape(len(images), 4, 4)
    return {"stage": jnp.tanh(jnp.einsum("btd,de->bte", patches, frozen))}


# Stands for an encoder: four locations of a random projection, and the images themselves.
linear_features = encoders.with_raw(encoders.FeatureFunction(_projections, dict))


FROZEN = np.random.default_rng(5).normal(size=(4, 6)).astype(np.float32)


def random_params(model: DiT):
    """Random ones: the initial output is zero."""
    side = model.image_size
    arguments = (
        jnp.zeros((1, side, side, model.in_channels)),
        jnp.zeros(1, jnp.int32),
        jnp.zeros((1, model.num_style_books), jnp.int32),
        jnp.zeros(1),
    )
    shapes = jax.eval_shape(model.init, jax.random.key(0), *arguments)["params"]
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(0)
    return tree.unflatten([jnp.float32(rng.normal(0, 0.3, leaf.shape)) for leaf in leaves])


def filled_queue(mesh, seed: int = 0) -> sample_queue.SampleQueue:
    """Four random images of each class and sixteen of any."""
    queue = sample_queue.init(
        10, per_class=4, unconditional=16, shape=(4, 4, 1), dtype=jnp.uint8, mesh=mesh
    )
    images = np.random.default_rng(seed).integers(0, 256, (40, 4, 4, 1), dtype=np.uint8)
    return sample_queue.push(queue, images, np.arange(40, dtype=np.int32) % 10)


def new_batch() -> dict[str, np.ndarray]:
    images = np.random.default_rng(9).integers(0, 256, (8, 4, 4, 1), dtype=np.uint8)
    return {"image": images, "label": np.arange(8, dtype=np.int32)}


@functools.cache
def make_step(labels: int, dtype=jnp.float32, **changes):
    return jit(
        functools.partial(
            generator_step.generator_step,
            model=MODEL.clone(dtype=dtype),
            feature_function=linear_features,
            optimizer=OPTIMIZER,
            settings=dataclasses.replace(SETTINGS, labels=labels, **changes),
        )
    )


def inputs(mesh_name: str) -> tuple:
    """State, queue, frozen parameters, batch and key of a first step."""
    mesh = meshes.make_mesh(*MESHES[mesh_name])
    everywhere = meshes.replicated(mesh)
    state = states.create_state(random_params(MODEL), OPTIMIZER, ema_decays=SETTINGS.ema_decays)
    return (
        jax.device_put(state, everywhere),
        filled_queue(mesh),
        jax.device_put(FROZEN, everywhere),
        transfer.global_batch(mesh, new_batch()),
        jax.random.key(3),
    )


@functools.cache
def first_step(mesh_name: str, labels: int, **changes):
    """(state, queue, metrics) on the host."""
    state, queue, metrics = make_step(labels, **changes)(*inputs(mesh_name))
    return transfer.fetch((state, (queue.by_class, queue.unconditional), metrics))


def leaves_by_path(tree) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


@pytest.mark.slow
@pytest.mark.parametrize(
    "mesh, labels",
    [
        ("8x1", 10),  # samples of a row over all devices
        ("2x4", 10),  # rows over one axis, samples over the other
    ],
)
def test_a_step_is_the_same_on_every_mesh(mesh, labels):
    expected, found = first_step("1", labels), first_step(mesh, labels)
    assert_same_step(found, expected)
    for ring, other in zip(expected[1], found[1], strict=True):
        np.testing.assert_array_equal(ring.images[:10], other.images[:10])
        for counter in ("next_slot", "filled"):  # of the classes alone: others are padding
            a, b = (np.atleast_1d(getattr(r, counter))[:10] for r in (ring, other))
            np.testing.assert_array_equal(a, b)


def assert_same_step(found, expected):
    """New state and metrics, up to the order of sums."""
    state, _, metrics = expected
    trees = random_params(MODEL), state.params
    for before, after in zip(*map(jax.tree.leaves, trees), strict=True):
        assert np.isfinite(after).all() and np.abs(after - before).max() > 1e-6
    assert metrics.gradient_norm > 0.1
    wanted, got = leaves_by_path((state, metrics)), leaves_by_path((found[0], found[2]))
    assert set(got) == set(wanted)
    for path, value in wanted.items():
        np.testing.assert_allclose(got[path], value, rtol=1e-5, atol=1e-5, err_msg=path)


@pytest.mark.parametrize(
    "mesh, labels, microbatches, keep_maps",
    [
        ("1", 10, 2, "yes"),
        pytest.param("1", 10, 2, "host", marks=pytest.mark.slow),
        pytest.param("1", 10, 2, "no", marks=pytest.mark.slow),
        pytest.param("1", 8, 8, "yes", marks=pytest.mark.slow),
        pytest.param("4x2", 8, 2, "yes", marks=pytest.mark.slow),
        pytest.param("4x2", 8, 2, "host", marks=pytest.mark.slow),
        pytest.param("4x2", 8, 2, "no", marks=pytest.mark.slow),
    ],
)
def test_a_step_is_the_same_in_pieces(mesh, labels, microbatches, keep_maps):
    found = first_step(mesh, labels, microbatches=microbatches, keep_maps=keep_maps)
    assert_same_step(found, first_step("1", labels))


@pytest.mark.slow
def test_pieces_may_have_statistics_of_their_own():
    rule = {"microbatches": 2, "shared_statistics": "microbatch"}
    (_, _, shared), (_, _, own) = first_step("1", 10), first_step("1", 10, **rule)
    for name, statistics in own.statistics.items():
        of_batch = shared.statistics[name]
        # Pieces of equal size and weights nearly so: their S average to nearly that of the batch.
        np.testing.assert_allclose(statistics.distance_scale, of_batch.distance_scale, rtol=0.05)
        np.testing.assert_allclose(
            statistics.generated_distance, of_batch.generated_distance, rtol=1e-5
        )
        assert statistics.distance_scale != of_batch.distance_scale
    assert own.cfg_scale == shared.cfg_scale and own.loss != shared.loss


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["batch", "microbatch", "previous"])
def test_the_weight_of_a_feature_scales_its_part_of_the_gradient(rule):
    """In microbatches too: loss and gradient are linear in it, and their statistics keep theirs."""
    start = leaves_by_path(random_params(MODEL))

    def step(weight):
        changes = {"microbatches": 2, "shared_statistics": rule}
        weights = {} if weight == 1 else {"feature_weights": (("raw", weight),)}
        of_step = make_step(10, **changes, **weights)
        if rule == "previous":
            of_step = functools.partial(of_step, previous=first_step("1", 10)[2].statistics)
        state, _, metrics = transfer.fetch(of_step(*inputs("1")))
        moved = {path: x - start[path] for path, x in leaves_by_path(state.params).items()}
        return float(metrics.loss), moved, metrics.statistics

    (without, moved_without, _), (once, moved_once, statistics) = step(0.0), step(1)
    found, moved, same = step(0.25)
    assert 0 < without < once
    np.testing.assert_allclose(found, 0.75 * without + 0.25 * once, rtol=1e-6)
    for path, change in moved.items():
        wanted = 0.75 * moved_without[path] + 0.25 * moved_once[path]
        np.testing.assert_allclose(change, wanted, rtol=1e-4, atol=1e-6, err_msg=path)
        assert np.abs(moved_once[path] - moved_without[path]).max() > 1e-5
    for path, value in leaves_by_path(statistics).items():
        np.testing.assert_allclose(leaves_by_path(same)[path], value, rtol=1e-5, err_msg=path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "drift"),
    [
        ("1", DriftOptions((0.05,), field="w_flow")),
        ("4x2", DriftOptions((0.05,), field="w_flow")),
        ("1", DriftOptions((1.0,), field="sliced")),
        ("1", DriftOptions((0.2,), negatives="two_fold", lookahead=1, annealed=True)),
    ],
    ids=lambda x: x if isinstance(x, str) else f"{x.field}-{x.negatives}",
)
def test_a_step_with_another_field_is_the_same_in_pieces(mesh, drift):
    """With what it needs: a second batch, a key, or the progress of the training."""
    expected = first_step("1", 8, drift=drift)
    found = first_step(mesh, 8, drift=drift, microbatches=2)
    assert_same_step(found, expected)


def previous_of_step(labels: int, microbatches: int):
    """The step with statistics of another, and its first arguments."""
    settings = {"microbatches": microbatches, "shared_statistics": "previous"}
    return make_step(labels, **settings), inputs("1")


@pytest.mark.parametrize("microbatches", [1, 2])
def test_a_step_with_its_own_statistics_as_those_before_is_exact(microbatches):
    """And it measures its own, which do not follow those that it was given, but for S."""
    expected = first_step("1", 10)
    step, arguments = previous_of_step(10, microbatches)
    exact = expected[2].statistics
    state, queue, metrics = step(*arguments, previous=exact)
    found = transfer.fetch((state, (queue.by_class, queue.unconditional), metrics))
    assert_same_step(found, expected)
    smaller = {name: x.replace(distance_scale=x.distance_scale / 2) for name, x in exact.items()}
    smaller = {n: x.replace(drift_mean_square=4 * x.drift_mean_square) for n, x in smaller.items()}
    other = step(*inputs("1"), previous=smaller)[2]
    assert abs(other.loss / expected[2].loss - 1) > 0.05
    for name, x in other.statistics.items():
        np.testing.assert_allclose(x.distance_scale, exact[name].distance_scale, rtol=1e-5)
        np.testing.assert_allclose(x.positive_distance, exact[name].positive_distance, rtol=1e-5)
        assert not np.allclose(x.drift_mean_square, exact[name].drift_mean_square, rtol=0.05)


def test_a_run_with_statistics_of_the_step_before_begins_with_those_of_its_first_rows():
    state, queue, frozen, batch, key = inputs("1")
    settings = dataclasses.replace(
        SETTINGS, microbatches=2, shared_statistics="previous", keep_maps="yes"
    )
    networks = {"model": MODEL, "feature_function": linear_features, "settings": settings}
    measure = jit(functools.partial(generator_step.first_statistics, **networks))
    pushed = sample_queue.push(queue, batch["image"], batch["label"])
    found, expected = measure(state, pushed, frozen, key), first_step("1", 10)[2].statistics
    for path, value in leaves_by_path(expected).items():
        np.testing.assert_allclose(leaves_by_path(found)[path], value, rtol=1e-5, err_msg=path)


def test_a_step_pushes_its_batch_and_moves_on():
    state, (by_class, of_any), metrics = first_step("1", 10)
    assert int(state.step) == 1 and int(metrics.updates) == 0
    images = new_batch()["image"]
    np.testing.assert_array_equal(of_any.images[8:], images)  # 40 pushed before, of 16
    np.testing.assert_array_equal(by_class.images[:8, 0], images)
    np.testing.assert_array_equal(by_class.next_slot[:10], [1] * 8 + [0] * 2)
    before, after, average = (
        np.asarray(tree["patch_embedding"]["kernel"])
        for tree in (random_params(MODEL), state.params, state.ema["0.9"])
    )
    np.testing.assert_allclose(average, 0.9 * before + 0.1 * after, rtol=1e-5, atol=1e-7)


def test_keys_follow_the_step():
    arguments = inputs("1")
    state, step = arguments[0], make_step(10)
    state = state.replace(step=jax.device_put(jnp.int32(1), state.step.sharding))
    _, _, second = step(state, *arguments[1:])
    _, _, again = step(state, *arguments[1:])
    first = first_step("1", 10)[2]
    assert second.cfg_scale == again.cfg_scale != first.cfg_scale
    _, _, other_root = step(*inputs("1")[:4], jax.random.key(4))
    assert other_root.cfg_scale != first.cfg_scale


def test_a_step_that_is_not_finite_is_skipped_and_named():
    state, queue, frozen, batch, key = inputs("1")
    step = make_step(10)
    broken = jax.device_put(frozen.at[1, 2].set(jnp.nan), frozen.sharding)
    before = transfer.fetch((state.params, state.ema))
    scales = []
    for count in (1, 2):
        state, queue, metrics = step(state, queue, broken, batch, key)
        assert not np.isfinite(metrics.gradient_norm)
        assert (int(state.step), int(state.skipped), int(state.skipped_in_a_row)) == (count,) * 3
        words = culprit.culprit_name(
            int(state.culprit), list(metrics.statistics), drift_names(SETTINGS.drift)
        )
        assert words == "feature stage at temperature 0.05"
        assert np.isfinite(metrics.statistics["raw"].drift_mean_square).all()
        scales.append(float(metrics.cfg_scale))
    assert scales[0] != scales[1]  # the keys advanced
    assert int(queue.by_class.next_slot[0]) == 2  # and so did the queue
    after = transfer.fetch((state.params, state.ema))
    jax.tree.map(np.testing.assert_array_equal, after, before)
    state, _, metrics = step(state, queue, frozen, batch, key)
    assert np.isfinite(metrics.loss)
    assert (int(state.step), int(state.skipped), int(state.skipped_in_a_row)) == (3, 2, 0)
    kernels = (tree["patch_embedding"]["kernel"] for tree in (state.params, before[0]))
    assert not np.allclose(*kernels, rtol=0, atol=1e-6)


def test_culprits():
    def statistics(*values):
        nothing = jnp.zeros(())
        return generator_step.DriftingStatistics(nothing, jnp.array(values), nothing, nothing)

    names, drifts = ["b", "a"], ("0.02", "0.2")
    for first, second, words in [
        ((1.0, np.inf), (np.nan, 1.0), "feature a at temperature 0.2"),
        ((1.0, 1.0), (np.nan, 1.0), "feature b at temperature 0.02"),
        ((1.0, 1.0), (1.0, 1.0), "the gradient (every drift was finite)"),
    ]:
        number = culprit.drift_culprit({"b": statistics(*second), "a": statistics(*first)})
        assert culprit.culprit_name(int(number), names, drifts) == words


@pytest.mark.slow
def test_bfloat16_computes_on_float32_parameters():
    state, _, metrics = make_step(8, jnp.bfloat16)(*inputs("1"))
    trees = state.params, state.ema, state.opt_state
    assert {leaf.dtype for leaf in jax.tree.leaves(trees)} == {jnp.dtype(jnp.float32)}
    expected = first_step("1", 8)[2]
    np.testing.assert_allclose(metrics.loss, expected.loss, rtol=0.05)
    np.testing.assert_allclose(metrics.gradient_norm, expected.gradient_norm, rtol=0.2)
    assert float(metrics.loss) != float(expected.loss)


def test_no_unconditional_samples():
    state, queue, frozen, batch, key = inputs("1")
    step = functools.partial(
        generator_step.generator_step,
        model=MODEL,
        feature_function=linear_features,
        optimizer=OPTIMIZER,
        settings=dataclasses.replace(SETTINGS, unconditional=0),
    )
    _, _, metrics = jax.eval_shape(step, state, queue, frozen, batch, key)
    assert metrics.loss.shape == ()


@pytest.mark.parametrize("count", [3, 10, 25])
def test_labels_are_whole_permutations(count):
    draw = jit(jax.vmap(lambda key: generator_rows.draw_labels(key, count, 10)))
    labels = np.asarray(draw(jax.random.split(jax.random.key(0), 500)))
    assert labels.shape == (500, count) and labels.dtype == np.int32
    for row in labels:
        for start in range(0, count, 10):
            part = row[start : start + 10]
            assert len(set(part)) == len(part) and set(part) <= set(range(10))
    shares = np.stack([np.bincount(column, minlength=10) for column in labels.T]) / 500
    assert np.abs(shares - 0.1).max() < 0.06  # every class in every place
    if count > 10:
        assert np.mean(np.all(labels[:, :10] == labels[:, 10:20], axis=1)) < 0.01


def test_images_on_the_way_in():
    levels = jnp.array([0, 51, 255], jnp.uint8)
    np.testing.assert_allclose(class_rows.to_float(levels), [-1.0, -0.6, 1.0], atol=1e-6)
    latents = jnp.array([-7.5, 0.25], jnp.bfloat16)
    found = class_rows.to_float(latents)
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, [-7.5, 0.25])


ENCODER = ResNetMAE(in_channels=1, width=4, num_classes=3, blocks=(1,), groups=2)
ENCODER_STEP = encoder_step.EncoderStepConfig(
    mask_ratio_min=0.5,
    mask_ratio_max=0.5,
    classifier_start=10,
    classifier_warmup=4,
    classifier_weight=0.2,
    ema_decays=(0.9,),
)


@functools.cache
def encoder_inputs(microbatches=1):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (8, 4, 4, 1), dtype=np.uint8)
    batch = {"image": images, "label": np.arange(8, dtype=np.int32) % 3}
    params = ENCODER.init(jax.random.key(0), jnp.zeros((1, 4, 4, 1)), jnp.zeros((1, 4, 4)))
    optimizer = optax.sgd(0.01)
    state = states.create_state(params["params"], optimizer, ema_decays=(0.9,))
    settings = dataclasses.replace(ENCODER_STEP, microbatches=microbatches)
    step = functools.partial(
        encoder_step.encoder_step, model=ENCODER, optimizer=optimizer, settings=settings
    )
    return state, batch, jit(step)


@pytest.mark.parametrize("at, weight", [(0, 0.0), (10, 0.0), (11, 0.05), (14, 0.2), (99, 0.2)])
def test_the_classifier_joins_late_and_slowly(at, weight):
    state, batch, step = encoder_inputs()
    after, metrics = step(state.replace(step=jnp.int32(at)), batch, jax.random.key(1))
    np.testing.assert_allclose(metrics["classifier_weight"], weight, rtol=1e-6)
    total = weight * metrics["classification"] + (1 - weight) * metrics["reconstruction"]
    np.testing.assert_allclose(metrics["loss"], total, rtol=1e-6)
    assert (int(metrics["updates"]), int(after.step)) == (at, at + 1)
    kernel, moved = (x.params["classifier"]["kernel"] for x in (state, after))
    assert np.array_equal(kernel, moved) == (weight == 0)


def test_the_encoder_learns_and_its_keys_follow_the_step():
    state, batch, step = encoder_inputs()
    losses = []
    for _ in range(30):
        state, metrics = step(state, batch, jax.random.key(1))
        losses.append(float(metrics["reconstruction"]))
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    fresh, _, _ = encoder_inputs()
    again = [step(fresh, batch, jax.random.key(1))[1]["reconstruction"] for _ in range(2)]
    other = step(fresh.replace(step=jnp.int32(1)), batch, jax.random.key(1))[1]["reconstruction"]
    assert again[0] == again[1] != other  # another step, another mask


def test_an_encoder_batch_in_parts_gives_the_same_numbers():
    state, batch, step = encoder_inputs()
    _, _, in_parts = encoder_inputs(microbatches=2)
    state = state.replace(step=jnp.int32(50))
    after, metrics = step(state, batch, jax.random.key(1))
    other, found = in_parts(state, batch, jax.random.key(1))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, metrics)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        other.params,
        after.params,
    )


def test_an_encoder_step_that_is_not_finite_is_skipped():
    state, batch, step = encoder_inputs()
    broken = jax.tree.map(lambda x: x, state.params)
    broken["decoder"]["head"]["bias"] = jnp.full(1, jnp.nan, jnp.float32)
    after, _ = step(state.replace(params=broken), batch, jax.random.key(1))
    assert (int(after.step), int(after.skipped), int(after.culprit)) == (1, 1, 0)
    np.testing.assert_array_equal(
        after.params["classifier"]["kernel"], state.params["classifier"]["kernel"]
    )
