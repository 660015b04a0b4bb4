"""Nearest training images of a run on a folder: copies are found, mirrored ones too."""

import dataclasses

import numpy as np
import pytest
from fake_generator import FakeGenerator
from PIL import Image

from drifting_jax.config import base_config
from drifting_jax.distributed import meshes
from drifting_jax.errors import UserError
from drifting_jax.evaluation.nearest_page import write_nearest_page
from drifting_jax.steps import sampling

COUNTS = (9, 4, 1)  # images of each class


@dataclasses.dataclass(frozen=True)
class Known(FakeGenerator):
    """Makes the images of an array [classes, n, 8, 8, 3], and then again."""

    images: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0))
    average = "decay 0.9"

    def batches(self, labels, indices, *, seed, cfg_scale, batch_size):
        made = self.images[labels, indices % self.images.shape[1]]
        for first in range(0, len(made), batch_size):
            batch = made[first : first + batch_size]
            yield sampling.Samples(batch, np.ones(len(batch), bool))


def run_of(images: np.ndarray, *, flip: bool) -> Known:
    config = base_config("generator")
    config.data.source, config.data.image_size, config.data.flip = "images", 8, flip
    return Known(meshes.make_mesh(), config=config, images=images)


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    """Images of three classes by class, and their folder."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("data")
    found = [rng.integers(0, 256, (count, 8, 8, 3), np.uint8) for count in COUNTS]
    for name, images in zip("abc", found, strict=True):
        (folder / name).mkdir()
        for i, image in enumerate(images):
            Image.fromarray(image).save(folder / name / f"{i}.png")
    return found, folder


def features(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1) / 255.0


def write(run, training, workdir):
    words = {"features": features, "words": "all pixels"}
    return write_nearest_page(run, workdir=workdir, folder=training[1], **words)


def to_nearest(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Distances of [n, …] to the nearest of [m, …] in pixels of [-1, 1], in float64."""
    a, b = (z.reshape(len(z), -1) / 127.5 - 1.0 for z in (x, y))
    return np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1)).min(1)


@pytest.mark.parametrize("flip", [False, True])
def test_distances_are_those_of_pixels(training, tmp_path, flip):
    samples = np.random.default_rng(1).integers(0, 256, (3, 32, 8, 8, 3), np.uint8)
    found = write(run_of(samples, flip=flip), training, tmp_path)
    of_samples, of_real = [], []
    for made, images in zip(samples, training[0], strict=True):
        seen = [*images, *(image[:, ::-1] for image in images)] if flip else list(images)
        of_samples.append(to_nearest(made, np.stack(seen)))
        for i in range(len(images)):
            others = [x for j, x in enumerate(seen) if j % len(images) != i]
            if others:
                of_real.append(to_nearest(images[i : i + 1], np.stack(others)))
    assert found.samples == pytest.approx(np.median(np.concatenate(of_samples)), rel=1e-5)
    assert found.real == pytest.approx(np.median(np.concatenate(of_real)), rel=1e-5)
    assert f"ratio {found.samples / found.real:.2f}" in found.words
    page = (tmp_path / "report.html").read_text()
    assert found.words in page and "all pixels" in page and "Nearest training images" in page
    assert ("mirror images" in page) == flip


def test_copies_are_seen(training, tmp_path):
    """Samples that are training images, every second one mirrored."""
    copies = np.stack([images[np.arange(32) % len(images)] for images in training[0]])
    copies[:, 1::2] = copies[:, 1::2, :, ::-1]
    found = write(run_of(copies, flip=True), training, tmp_path)
    assert found.samples < 1e-3 < found.real and "ratio 0.00" in found.words
    with Image.open(tmp_path / "samples" / "nearest.png") as picture:
        grid = np.asarray(picture)
    rows, columns = 2 * len(COUNTS), 2  # a sample and one neighbour, as the smallest class has
    side = 8 + 1
    factor = grid.shape[0] // (rows * side + 1)
    small = grid[::factor, ::factor]
    assert small.shape == (rows * side + 1, columns * side + 1, 3)
    tiles = small[1:, 1:].reshape(rows, side, columns, side, 3).swapaxes(1, 2)[:, :, :8, :8]
    expected = [image for images in copies for image in images[:2]]
    np.testing.assert_array_equal(tiles[:, 0], expected)
    np.testing.assert_array_equal(tiles[:, 1], expected)  # a sample's nearest is its original
    alone = write(run_of(copies, flip=False), training, tmp_path)
    assert alone.samples > 0.1  # a mirror image is far away where none was trained on


def test_images_that_are_there_twice_have_no_ratio(tmp_path):
    image = np.full((8, 8, 3), 9, np.uint8)
    for name in "abc":
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(2):
            Image.fromarray(image).save(tmp_path / "data" / name / f"{i}.png")
    run = run_of(np.zeros((3, 4, 8, 8, 3), np.uint8), flip=False)
    found = write(run, (None, tmp_path / "data"), tmp_path)
    assert found.real == 0 and "ratio" not in found.words


def test_other_classes_are_refused(training, tmp_path):
    run = dataclasses.replace(run_of(np.zeros((2, 4, 8, 8, 3), np.uint8), flip=False),
                              class_names=("a", "b"))  # fmt: skip
    with pytest.raises(UserError, match="has other classes than the images that the run is of"):
        write(run, training, tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_image_and_its_mirror_image_are_shown_once(tmp_path):
    """Images of one colour each, which are their own mirror images."""
    shades = {"a": range(6), "b": range(10, 15), "c": range(20, 27)}
    for name, colours in shades.items():
        (tmp_path / "data" / name).mkdir(parents=True)
        for colour in colours:
            image = np.full((8, 8, 3), colour, np.uint8)
            Image.fromarray(image).save(tmp_path / "data" / name / f"{colour}.png")
    samples = np.repeat([[0, 0], [14, 14], [20, 20]], 192).reshape(3, 2, 8, 8, 3).astype(np.uint8)
    write(run_of(samples, flip=True), (None, tmp_path / "data"), tmp_path)
    with Image.open(tmp_path / "samples" / "nearest.png") as picture:
        grid = np.asarray(picture)
    factor = grid.shape[0] // (6 * 9 + 1)
    rows = grid[4 * factor :: 9 * factor, 4 * factor :: 9 * factor, 0]  # inside of each tile
    expected = [[0, 0, 1, 2, 3, 4], [14, 14, 13, 12, 11, 10], [20, 20, 21, 22, 23, 24]]
    np.testing.assert_array_equal(rows, np.repeat(expected, 2, axis=0))
