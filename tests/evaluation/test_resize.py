"""Resizes of published evaluations: TensorFlow 1's and Pillow's, to the last bit or nearly so."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import PIL
import pytest
from PIL import Image

from drifting_jax.evaluation.features.resize import pil_bicubic, tf_bilinear

TORCH = Path(__file__).parents[1] / "fixtures" / "torch"
INCEPTION = np.load(TORCH / "inception" / "io.npz")
PREPROCESS = np.load(TORCH / "preprocess" / "io.npz")
BICUBIC = Image.Resampling.BICUBIC

bilinear = jax.jit(tf_bilinear, static_argnums=1)
bicubic = jax.jit(pil_bicubic, static_argnums=1)


def _noise(height, width, channels=3, *, batch=1, extreme=False):
    """uint8 images; extreme ones are 0 and 255 alone, which overshoots most."""
    rng = np.random.default_rng(height * 1000 + width)
    shape = (batch, height, width, channels)
    return (rng.integers(0, 2, shape) * 255 if extreme else rng.integers(0, 256, shape)).astype(
        np.uint8
    )


def _by_pillow(image, *sizes):
    """[h, w, c] through resizes to (width, height), one after another."""
    planes = []
    for c in range(image.shape[-1]):
        plane = Image.fromarray(image[..., c])
        for size in sizes:
            plane = plane.resize(size, BICUBIC)
        planes.append(np.asarray(plane))
    return np.stack(planes, axis=-1)


@pytest.mark.parametrize("name", ["a/resized299_first_image", "c/resized299_every2nd"])
def test_bilinear_equals_the_reference(name):
    images = INCEPTION[f"{name[0]}/image_u8"].transpose(0, 2, 3, 1)
    step = 2 if name.endswith("2nd") else 1
    expected = INCEPTION[name].transpose(0, 2, 3, 1)
    ours = bilinear(images[:1], 299)[:, ::step, ::step]
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, expected, rtol=0, atol=4e-5)  # two units of the last place


@pytest.mark.parametrize(
    ("height", "width", "size"), [(1, 1, 7), (5, 9, 4), (32, 32, 299), (20, 3, 20), (640, 480, 299)]
)
def test_bilinear_by_the_formula(height, width, size):
    images = _noise(height, width, channels=1, batch=2)
    x = images.astype(np.float64)
    for axis, length in ((2, width), (1, height)):
        positions = (np.arange(size, dtype=np.float32) * np.float32(length / size)).astype(float)
        low = np.floor(positions).astype(int)
        high = np.minimum(low + 1, length - 1)
        shape = [-1 if i == axis else 1 for i in range(4)]
        fraction = (positions - low).reshape(shape)
        x = x.take(low, axis) * (1 - fraction) + x.take(high, axis) * fraction
    np.testing.assert_allclose(bilinear(images, size), x, rtol=0, atol=1e-4)
    floats = bilinear(images.astype(np.float32), size)
    np.testing.assert_allclose(bilinear(images, size), floats, rtol=0, atol=5e-5)


def test_images_of_the_size_wanted_are_left_alone():
    images = _noise(24, 24, batch=2)
    np.testing.assert_array_equal(bilinear(images, 24), images.astype(np.float32))
    np.testing.assert_array_equal(bicubic(images, 24), images)


@pytest.mark.parametrize("case", ["up", "down"])
def test_bicubic_equals_the_reference(case):
    ours = bicubic(PREPROCESS[f"{case}/image_u8_hwc"][None], 224)
    np.testing.assert_array_equal(ours[0], PREPROCESS[f"{case}/pil_bicubic_u8_224"])


@pytest.mark.parametrize("extreme", [False, True])
@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(1, 1, 5), (2, 3, 7), (7, 2, 3), (9, 9, 30), (31, 64, 33), (64, 64, 16), (90, 100, 89),
     (57, 201, 13), (32, 40, 32), (40, 32, 32), (256, 256, 224), (100, 100, 1), (2, 90, 224)],
)  # fmt: skip
def test_bicubic_equals_the_installed_pillow_in_every_bit(height, width, size, extreme):
    images = _noise(height, width, channels=2, batch=2, extreme=extreme)
    ours = bicubic(images, size)
    assert ours.dtype == jnp.uint8
    if PIL.__version__.partition(".")[0] >= "13" or height == width:
        for image, result in zip(images, ours, strict=True):
            np.testing.assert_array_equal(result, _by_pillow(image, (size, size)))


@pytest.mark.parametrize(
    ("height", "width", "size", "rows_first"),
    [(90, 60, 20, False), (90, 40, 20, True), (90, 55, 20, False), (90, 54, 20, True),
     (90, 10, 60, True), (90, 100, 60, False), (70, 30, 90, False)],
)  # fmt: skip
def test_the_pass_that_removes_far_more_comes_first(height, width, size, rows_first):
    image = _noise(height, width, channels=1, extreme=True)
    first = (width, size) if rows_first else (size, height)
    other = (size, height) if rows_first else (width, size)
    ours = np.asarray(bicubic(image, size)[0])
    np.testing.assert_array_equal(ours, _by_pillow(image[0], first, (size, size)))
    assert (ours != _by_pillow(image[0], other, (size, size))).any()


@pytest.mark.parametrize("resize", [tf_bilinear, pil_bicubic])
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((4, 4, 3), "uint8"),
        ((1, 4, 4, 3), "float16"),
        ((1, 4, 4, 3), "int32"),
        ((0, 4, 4, 3), "uint8"),
    ],
)
def test_other_arrays_than_batches_of_images_are_refused(resize, shape, dtype):
    with pytest.raises(ValueError, match=r"images must be \[b, h, w, c\] of uint8.* found"):
        jax.eval_shape(partial(resize, size=8), jnp.zeros(shape, dtype))


def test_bicubic_refuses_floats():
    with pytest.raises(ValueError, match=r"of uint8, found .* of float32"):
        pil_bicubic(jnp.zeros((1, 4, 4, 3)))
