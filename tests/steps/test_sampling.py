"""The sampler: each sample by itself on every mesh and in every batch, and its way to uint8."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drifting_jax.config.streams import STREAMS, root_key
from drifting_jax.distributed import class_rows, meshes
from drifting_jax.errors import UserError
from drifting_jax.models import generators
from drifting_jax.models.dit import DiT
from drifting_jax.steps import sampling
from drifting_jax.steps.generator import Generator

MODEL = DiT(
    image_size=4,
    in_channels=1,
    out_channels=2,
    patch_size=2,
    width=16,
    depth=1,
    num_heads=2,
    num_classes=5,
    num_context_tokens=2,
    num_style_books=3,
    styles_per_book=4,
)
MESHES = {"1": (1, 1), "8x1": (8, 1), "4x2": (4, 2)}
CLASSES, PER_CLASS, CFG_SCALE = (4, 0, 2), 3, 1.5


@functools.cache
def params():
    """Random ones: the initial output is zero."""
    noise, styles = generators.draw_inputs(jax.random.key(0), MODEL)
    arguments = noise[None], jnp.zeros(1, jnp.int32), styles[None], jnp.ones(1)
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), *arguments)["params"]
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(0)
    return tree.unflatten([rng.normal(0, 0.3, leaf.shape).astype(np.float32) for leaf in leaves])


@functools.cache
def expected(seed: int = 7) -> np.ndarray:
    """Samples [9, 4, 4, 2] in [-1, 1], class-major, one network evaluation each."""
    apply = jax.jit(MODEL.apply)
    images = []
    for label in CLASSES:
        for index in range(PER_CLASS):
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), label), index)
            noise, styles = generators.draw_inputs(key, MODEL)
            arguments = noise[None], jnp.full(1, label), styles[None], jnp.full(1, CFG_SCALE)
            images.append(apply({"params": params()}, *arguments)[0])
    return np.stack(images).astype(np.float64)


@functools.cache
def sampler(mesh_name: str):
    mesh = meshes.make_mesh(*MESHES[mesh_name])
    return sampling.make_sampler(MODEL, mesh), mesh


def sample(mesh_name: str, batch_size: int, order=slice(None), seed: int = 7) -> np.ndarray:
    labels, indices = sampling.class_major(CLASSES, PER_CLASS)
    function, mesh = sampler(mesh_name)
    return sampling.sample_all(
        function,
        params(),
        jax.random.key(seed),
        labels[order],
        indices[order],
        cfg_scale=CFG_SCALE,
        batch_size=batch_size,
        mesh=mesh,
    ).images


def assert_close_to(found: np.ndarray, images: np.ndarray) -> None:
    """uint8 of the images, but for values that rounding puts between two levels."""
    assert found.dtype == np.uint8
    levels = np.clip((images + 1) * 127.5, 0, 255)
    assert np.abs(found - levels).max() < 0.501
    assert np.std(levels) > 10  # not the same grey everywhere


@pytest.mark.parametrize("mesh, batch_size", [("1", 9), ("1", 2), ("8x1", 5), ("4x2", 16)])
def test_samples_are_the_same_in_any_batch_and_on_any_mesh(mesh, batch_size):
    assert_close_to(sample(mesh, batch_size), expected())


def test_a_sample_does_not_depend_on_its_neighbours():
    order = np.array([7, 1, 4, 1])
    assert_close_to(sample("8x1", 8, order), expected()[order])


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("jax_enable_x64", True),
        ("jax_default_prng_impl", "rbg"),
        ("jax_default_prng_impl", "unsafe_rbg"),
        ("jax_threefry_partitionable", False),
        ("jax_default_matmul_precision", "bfloat16"),
    ],
)
@pytest.mark.parametrize("batch_size", [8, 16])
def test_samples_do_not_depend_on_what_jax_was_set_to(setting, value, batch_size):
    before = getattr(jax.config, setting)
    usual = sample("8x1", 9)
    jax.config.update(setting, value)
    try:
        np.testing.assert_array_equal(sample("8x1", batch_size), usual)
    finally:
        jax.config.update(setting, before)


def test_every_sample_is_another():
    images = expected()
    for i in range(len(images)):
        for j in range(i):
            assert np.abs(images[i] - images[j]).max() > 0.05
    assert np.abs(expected(8) - images).max(axis=(1, 2, 3)).min() > 0.05


def test_batches_come_in_order_and_the_last_is_padded():
    function, mesh = sampler("8x1")
    labels, indices = sampling.class_major(CLASSES, PER_CLASS)
    batches = sampling.sample_in_batches(
        function,
        params(),
        jax.random.key(7),
        labels,
        indices,
        cfg_scale=CFG_SCALE,
        batch_size=3,  # rounded up to the eight devices
        mesh=mesh,
    )
    batches = list(batches)
    assert [len(batch.images) for batch in batches] == [8, 8]
    found = np.concatenate([batch.images for batch in batches])
    assert_close_to(found[: len(labels)], expected())


def test_samples_that_are_no_numbers_are_marked():
    function, mesh = sampler("8x1")
    embedding = params()["class_embedding"]
    broken = jax.tree.map(lambda x: jnp.asarray(x).at[0].set(jnp.nan), embedding)
    labels, indices = sampling.class_major(CLASSES, PER_CLASS)
    found = sampling.sample_all(
        function,
        params() | {"class_embedding": broken},
        jax.random.key(7),
        np.where(labels == labels[0], 0, 1),
        indices,
        cfg_scale=CFG_SCALE,
        batch_size=8,
        mesh=mesh,
    )
    np.testing.assert_array_equal(found.finite, labels != labels[0])


def test_inputs_are_noise_and_styles():
    keys = jax.random.split(jax.random.key(1), 2000)
    noise, styles = jax.jit(jax.vmap(lambda key: generators.draw_inputs(key, MODEL)))(keys)
    assert noise.shape == (2000, 4, 4, 1) and noise.dtype == jnp.float32
    assert styles.shape == (2000, 3) and styles.dtype == jnp.int32
    assert abs(float(noise.mean())) < 0.02 and abs(float(noise.std()) - 1) < 0.02
    shares = np.stack([np.bincount(book, minlength=4) for book in np.asarray(styles).T]) / 2000
    assert shares.shape == (3, 4) and np.abs(shares - 0.25).max() < 0.05
    first, second = np.asarray(styles)[:, 0], np.asarray(styles)[:, 1]
    assert abs(np.mean(first == second) - 0.25) < 0.05  # books are drawn independently


def test_inputs_without_styles():
    _, styles = generators.draw_inputs(jax.random.key(1), MODEL.clone(styles_per_book=0))
    np.testing.assert_array_equal(styles, np.zeros(3))


def inputs_of(index: int, label: int = 4, seed: int = 7):
    """Noise [4, 4, 1] and styles [3] of one sample."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), label), index)
    return tuple(np.asarray(x) for x in generators.draw_inputs(key, MODEL))


@pytest.mark.parametrize(
    "position, changed",
    [(0.1, [0, 0, 0]), (0.25, [1, 0, 0]), (0.6, [1, 1, 0]), (0.9, [1, 1, 1])],
)
def test_the_way_from_one_noise_to_another(position, changed):
    first, second = (tuple(x[None] for x in inputs_of(index)) for index in (0, 1))
    noise, styles = sampling.between(first, second, jnp.float32(position))
    angle = np.pi / 2 * position
    weights = np.cos(angle), np.sin(angle)
    expected_noise = weights[0] * first[0].astype(np.float64) + weights[1] * second[0]
    np.testing.assert_allclose(noise, expected_noise, atol=1e-6)
    np.testing.assert_array_equal(styles, np.where([changed], second[1], first[1]))


def test_noise_on_the_way_stays_normal():
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=(20_000, 1)).astype(np.float32) for _ in range(2))
    none = np.zeros((20_000, 0), np.int32)
    for position in (0.2, 0.5):
        noise, styles = sampling.between((a, none), (b, none), np.float32(position))
        assert abs(float(noise.std()) - 1) < 0.02
        assert abs(float((noise**4).mean()) - 3) < 0.2
        assert styles.shape == none.shape


def test_ways_between_samples():
    function, mesh = sampler("8x1")
    generator = Generator(
        step=1,
        ema_decay=0.9,
        params=params(),
        class_names=list("abcde"),
        mesh=mesh,
        sampler=function,
        model=MODEL,
        vae=None,
        makes_pixels=True,
    )
    labels, indices = np.int32([4, 4, 0]), np.int32([0, 1, 2])
    given = {"seed": 7, "cfg_scale": CFG_SCALE, "batch_size": 3}
    ways = generator.interpolate(labels, indices, count=3, **given)
    assert ways.shape == (3, 3, 4, 4, 2)
    np.testing.assert_array_equal(ways[:, 0], generator.sample(labels, indices, **given))
    np.testing.assert_array_equal(ways[:, -1], generator.sample(labels, indices + 1, **given))
    np.testing.assert_array_equal(ways[0, -1], ways[1, 0])
    key = jax.random.fold_in(root_key(7), STREAMS["samples"])
    ends = []
    for index in (0, 1):
        own = jax.random.fold_in(jax.random.fold_in(key, 4), index)
        ends.append([np.asarray(x)[None] for x in generators.draw_inputs(own, MODEL)])
    noise = (ends[0][0] + ends[1][0]) * np.float32(0.5**0.5)
    styles = np.stack([*ends[1][1].T[:2], *ends[0][1].T[2:]], axis=-1)  # 1/6 and 3/6 are past
    arguments = noise, jnp.full(1, 4), styles, jnp.full(1, CFG_SCALE)
    middle = np.asarray(jax.jit(MODEL.apply)({"params": params()}, *arguments))
    assert_close_to(ways[0, 1], middle[0].astype(np.float64))
    with pytest.raises(ValueError, match="at least 2 images; found count 1"):
        generator.interpolate(labels, indices, count=1, **given)
    as_lists = generator.interpolate([4, 4, 0], [0, 1, 2], count=2, **given)
    np.testing.assert_array_equal(as_lists, ways[:, [0, -1]])
    for wrong, numbers in (
        ([5], [0]),
        ([-1], [0]),
        (["a"], [0]),
        ([0, 1], [0]),
        ("a", 8),
        ([0], [0.5]),
    ):
        with pytest.raises(UserError, match="labels must be a list of integers from 0 to 4, and"):
            generator.sample(wrong, numbers, **given)


def test_uint8_rounds_half_to_even_and_clips():
    # Near the middle of two levels float32 has values that map to it exactly.
    middles = (np.arange(255) + 0.5) / 127.5 - 1
    near = np.concatenate([np.nextafter(np.float32(middles), np.float32(s)) for s in (-2, 2)])
    x = np.concatenate([np.float32(middles), near])
    levels = ((x + np.float32(1)) * np.float32(127.5)).astype(np.float64)
    exact = levels % 1 == 0.5
    assert np.count_nonzero(exact & (np.floor(levels) % 2 == 0)) > 20
    assert np.count_nonzero(exact & (np.floor(levels) % 2 == 1)) > 20
    found = jax.jit(sampling.to_uint8)(x)
    assert found.dtype == jnp.uint8
    below = np.floor(levels)
    np.testing.assert_array_equal(found[exact], (below + below % 2)[exact])
    np.testing.assert_array_equal(found[~exact], np.floor(levels + 0.5)[~exact])
    outside = jnp.array([-np.inf, -1.01, -1.0, 0.0, 1.0, 1.01, 300.0, np.inf])
    np.testing.assert_array_equal(sampling.to_uint8(outside), [0, 0, 0, 128, 255, 255, 255, 255])


def test_uint8_is_the_inverse_of_the_way_in():
    levels = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(
        sampling.to_uint8(class_rows.to_float(jnp.asarray(levels))), levels
    )


def test_class_major_order():
    labels, indices = sampling.class_major([3, 1], 2)
    np.testing.assert_array_equal(labels, [3, 3, 1, 1])
    np.testing.assert_array_equal(indices, [0, 1, 0, 1])
    assert labels.dtype == indices.dtype == np.int32
