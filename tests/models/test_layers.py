"""Shared layers against the reference numbers and independent float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import read_release

from drifting_jax.models import layers


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rotary_equals_the_reference(dtype):
    @jax.jit
    def rotate(x):
        angles = layers.rotary_angles(x.shape[1], x.shape[-1], dtype=jnp.dtype(dtype))
        return layers.apply_rotary(x.astype(dtype), *angles).astype(jnp.float32)

    arrays = read_release.load("C_rope.npz")
    for name in ("q", "k"):
        ours = rotate(arrays[f"in/{name}"])
        np.testing.assert_allclose(ours, arrays[f"out/{dtype}_jit/{name}"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("width", [6, 24, 64, 128])
def test_rotary_rounds_frequencies_as_the_reference_does(width):
    """In bfloat16 bit for bit; in float32 up to the rounding of cosines of angles near 272."""
    arrays = read_release.load("C_rope_widths.npz")
    for dtype, tolerance in (("bfloat16", 0.0), ("float32", 5e-5)):

        @jax.jit
        def rotate(x, dtype=dtype):
            angles = layers.rotary_angles(x.shape[1], width, dtype=jnp.dtype(dtype))
            return layers.apply_rotary(x.astype(dtype), *angles).astype(jnp.float32)

        for name in ("q", "k"):
            expected = arrays[f"{width}/out/{dtype}_eager/{name}"]
            ours = rotate(arrays[f"{width}/in/{name}"])
            np.testing.assert_allclose(ours, expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("width", [6, 8, 16, 24, 64, 128])
def test_rotary_frequencies_are_those_of_float64_rounded_once(width):
    cosines, sines = layers.rotary_angles(2, width, dtype=jnp.float32)
    frequencies = np.arctan2(sines[1], cosines[1])
    expected = 10000.0 ** -(np.arange(0, width, 2) / width)
    np.testing.assert_allclose(frequencies, expected, rtol=1e-6)
    angles = np.float32(jnp.asarray(expected, jnp.bfloat16))  # at position 1
    _, sines = layers.rotary_angles(2, width, dtype=jnp.bfloat16)
    np.testing.assert_array_equal(np.float32(sines[1]), np.float32(jnp.sin(jnp.bfloat16(angles))))


def test_rotary_logits_depend_on_the_distance_of_tokens_alone():
    angles = layers.rotary_angles(9, 8, dtype=jnp.float32)
    q, k = np.random.default_rng(0).normal(size=(2, 8)).astype(np.float32)
    repeated = [jnp.broadcast_to(a, (1, 9, 1, 8)) for a in (q, k)]
    q, k = (layers.apply_rotary(a, *angles)[0, :, 0] for a in repeated)
    logits = np.asarray(q @ k.T)
    for offset in range(-8, 9):
        np.testing.assert_allclose(np.ptp(np.diagonal(logits, offset)), 0, atol=1e-5)
    assert np.ptp(logits) > 0.1


def test_patchify_order_and_inverse():
    images = np.random.default_rng(0).normal(size=(2, 6, 9, 2)).astype(np.float32)
    patches = np.asarray(layers.patchify(images, 3))
    assert patches.shape == (2, 2, 3, 18)
    for row in range(2):
        for column in range(3):
            square = images[:, 3 * row : 3 * row + 3, 3 * column : 3 * column + 3]
            np.testing.assert_array_equal(patches[:, row, column], square.reshape(2, -1))
    np.testing.assert_array_equal(layers.unpatchify(patches, 3), images)
    np.testing.assert_array_equal(layers.patchify(images, 1), images)
    with pytest.raises(ValueError, match="patch_size 4 must divide"):
        layers.patchify(images, 4)


def _convolve(x, kernel, stride):
    """Float64 convolution by its definition."""
    b, h, w, _ = x.shape
    size = kernel.shape[0]
    pad = size // 2
    x = np.pad(np.asarray(x, np.float64), ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    rows, columns = range(0, h, stride), range(0, w, stride)
    y = np.zeros((b, len(rows), len(columns), kernel.shape[-1]))
    for i, r in enumerate(rows):
        for j, c in enumerate(columns):
            y[:, i, j] = np.einsum("bhwc,hwco->bo", x[:, r : r + size, c : c + size], kernel)
    return y


@pytest.mark.parametrize(
    ("height", "width", "size", "stride"),
    [
        (1, 1, 3, 1),
        (2, 2, 3, 1),
        (4, 4, 3, 2),
        (3, 3, 3, 2),
        (4, 4, 1, 2),
        (5, 4, 3, 1),
        (8, 7, 3, 2),
    ],
)
def test_conv_equals_its_definition(height, width, size, stride):
    x = np.random.default_rng(0).normal(size=(2, height, width, 3)).astype(np.float32)
    conv = layers.Conv(5, size, stride)
    params = conv.init(jax.random.key(0), x)
    y = jax.jit(conv.apply)(params, x)
    expected = _convolve(x, np.asarray(params["params"]["kernel"], np.float64), stride)
    np.testing.assert_allclose(y, expected, atol=1e-5, rtol=0)


def test_group_norm_equals_float64():
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(2, 3, 5, 12)) * 3 + 7).astype(np.float32)
    scale, bias = rng.normal(size=(2, 12)).astype(np.float32)
    y = jax.jit(layers.GroupNorm(4).apply)({"params": {"scale": scale, "bias": bias}}, x)
    groups = x.astype(np.float64).reshape(2, 15, 4, 3)
    centred = groups - groups.mean((1, 3), keepdims=True)
    normed = centred / np.sqrt((centred**2).mean((1, 3), keepdims=True) + 1e-6)
    expected = normed.reshape(2, 3, 5, 12) * scale + bias
    np.testing.assert_allclose(y, expected, atol=2e-5, rtol=0)


def test_group_norm_refuses_groups_that_do_not_divide():
    with pytest.raises(ValueError, match="groups must divide the 12 channels"):
        layers.GroupNorm(5).init(jax.random.key(0), jnp.zeros((1, 2, 2, 12)))


def test_sinusoid_equals_float64():
    values = np.array([0.0, 1.0, 3.7], np.float32)
    y = jax.jit(layers.sinusoid, static_argnums=1)(values, 16)
    angles = values[:, None] * 10000.0 ** (-np.arange(8) / 8)
    np.testing.assert_allclose(y, np.concatenate([np.cos(angles), np.sin(angles)], 1), atol=1e-6)


def test_sincos_positions_of_neighbours_are_nearest():
    positions = layers.sincos_2d(4, 32)
    assert positions.shape == (16, 32)
    assert positions.dtype == np.float32
    distance = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
    assert (distance[5] < distance[5, 6] + 1e-6).sum() == 5  # itself and its four neighbours
    with pytest.raises(ValueError, match="multiple of 4"):
        layers.sincos_2d(4, 30)
