"""Images as ImageNet's networks take them: torch's bicubic resizes, and the normalisation."""

from pathlib import Path

import jax
import numpy as np
import pytest

from drifting_jax.compatibility import enable_x64
from drifting_jax.models.pixels import PLAIN_BICUBIC, imagenet_input

FOLDER = Path(__file__).parents[1] / "fixtures" / "torch" / "preprocess"
IMAGES, RESIZED = np.load(FOLDER / "io.npz"), np.load(FOLDER / "torch_resize.npz")
NAMES = {"noantialias": PLAIN_BICUBIC, "antialias": "bicubic"}
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def cubic(x: float, a: float) -> float:
    """Keys' convolution kernel."""
    x = abs(x)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def plain_matrix(size: int, new_size: int) -> np.ndarray:
    """Four taps around each position, a = -0.75; pixels beyond the border repeat it."""
    matrix = np.zeros((new_size, size))
    for row in range(new_size):
        position = (row + 0.5) * size / new_size - 0.5
        for column in range(int(np.floor(position)) - 1, int(np.floor(position)) + 3):
            matrix[row, min(max(column, 0), size - 1)] += cubic(position - column, -0.75)
    return matrix


def antialiased_matrix(size: int, new_size: int) -> np.ndarray:
    """a = -0.5, as wide as the step between positions; the taps in the image sum to one."""
    scale = max(size / new_size, 1.0)
    matrix = np.zeros((new_size, size))
    for row in range(new_size):
        centre = (row + 0.5) * size / new_size
        first = max(int(centre - 2 * scale + 0.5), 0)
        for column in range(first, min(int(centre + 2 * scale + 0.5), size)):
            matrix[row, column] = cubic((column + 0.5 - centre) / scale, -0.5)
    return matrix / matrix.sum(1, keepdims=True)


MATRICES = {PLAIN_BICUBIC: plain_matrix, "bicubic": antialiased_matrix}


@pytest.mark.parametrize("shape", [(32, 32, 224), (5, 9, 14), (17, 40, 14)])
@pytest.mark.parametrize("method", MATRICES)
def test_a_resize_is_torchs_formula(method, shape):
    height, width, side = shape
    images = np.random.default_rng(0).uniform(-1, 1, (2, height, width, 3))
    vertical, horizontal = MATRICES[method](height, side), MATRICES[method](width, side)
    with enable_x64(True):
        found = imagenet_input(images, side, method)
    expected = np.einsum("ri,bijd,cj->brcd", vertical, images, horizontal)
    expected = ((expected + 1) / 2 - MEAN) / STD
    np.testing.assert_allclose(found, expected, atol=2e-6)  # jax.image.resize has float32 weights
    np.testing.assert_allclose(
        imagenet_input(np.float32(images), side, method), expected, atol=2e-5
    )


@pytest.mark.parametrize("way", ["up", "down"])
@pytest.mark.parametrize("name", NAMES)
def test_a_resize_equals_torchs_numbers(name, way):
    image = IMAGES[f"{way}/image_u8_hwc"][None] / 127.5 - 1
    found = imagenet_input(np.float32(image), 224, NAMES[name], normalize=False)
    levels = 255 * np.asarray(found, np.float64)[0, ::8, ::8].transpose(2, 0, 1)
    # torch's antialiased weights are float32: its own result is off by 5e-3 levels.
    np.testing.assert_allclose(levels, RESIZED[f"{way}/{name}"], atol=1e-2)


@pytest.mark.parametrize("method", MATRICES)
def test_the_gradient_is_the_transposed_resize(method):
    rng = np.random.default_rng(1)
    images, cotangent = rng.uniform(-1, 1, (1, 8, 6, 3)), rng.normal(size=(1, 14, 14, 3))
    vertical, horizontal = MATRICES[method](8, 14), MATRICES[method](6, 14)
    with enable_x64(True):
        _, pull_back = jax.vjp(lambda x: imagenet_input(x, 14, method), images)
        (found,) = pull_back(cotangent)
    expected = np.einsum("ri,brcd,cj->bijd", vertical, cotangent / 2 / STD, horizontal)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_pixels_may_stay_in_zero_to_one():
    images = np.linspace(-1, 1, 12, dtype=np.float32).reshape(1, 2, 2, 3)
    plain = imagenet_input(images, None, "bicubic", normalize=False)
    np.testing.assert_allclose(plain, np.linspace(0, 1, 12).reshape(1, 2, 2, 3), atol=1e-7)
    normalised = imagenet_input(images, None, "bicubic")
    np.testing.assert_allclose(normalised, (np.asarray(plain) - MEAN) / STD, atol=1e-6)
