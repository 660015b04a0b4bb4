"""A toy is read from its workdir and drawn, during its training and afresh."""

import io

import demo_runs
import numpy as np
import pytest
from PIL import Image

from drifting_jax.demonstration.points import PointsShow, scatter_png
from drifting_jax.errors import UserError
from drifting_jax.training.toy import load_toy, read_frames


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return demo_runs.save_toy(tmp_path_factory.mktemp("toys") / "toy")


@pytest.fixture(scope="module")
def loaded(workdir):
    return load_toy(workdir)


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB"))


def test_a_toy_makes_the_points_of_its_averages(loaded):
    assert loaded.step == demo_runs.STEP
    assert list(loaded.samplers) == list(demo_runs.DECAYS)
    points = loaded.samplers[0.99](3, 50)
    assert points.shape == (50, 2) and points.dtype == np.float32
    # It began at the left mode and was not trained.
    np.testing.assert_allclose(points.mean(axis=0), [-1.5, 0], atol=0.1)
    np.testing.assert_array_equal(loaded.samplers[0.99](3, 50), points)
    assert (loaded.samplers[0.99](4, 50) != points).any()


def test_frames_come_in_order_and_a_damaged_one_is_named(loaded, workdir):
    frames = read_frames(loaded.config, workdir)
    assert list(frames) == [0, 1, demo_runs.STEP]
    assert frames[0].mean() < 0.2 < 0.8 < frames[demo_runs.STEP].mean()
    path = workdir / "frames" / "00000001.npy"
    whole = path.read_bytes()
    try:
        for damage in (b"", b"no array", whole[:-3]):
            path.write_bytes(damage)
            with pytest.raises(UserError, match=r"00000001\.npy cannot be read"):
                read_frames(loaded.config, workdir)
    finally:
        path.write_bytes(whole)


def test_what_is_no_toy(tmp_path, workdir):
    with pytest.raises(UserError, match="holds no run"):
        load_toy(tmp_path)
    (tmp_path / "config.json").write_bytes((workdir / "config.json").read_bytes())
    with pytest.raises(UserError, match="holds no checkpoint yet"):
        load_toy(tmp_path)


def test_the_pictures_and_files_of_a_toy(loaded, workdir, tmp_path):
    show = PointsShow(loaded, read_frames(loaded.config, workdir))
    line, first = show.frame(0, tmp_path)
    assert line == "Step 0"
    last = show.frame(2, tmp_path)[1]
    assert (pixels(first.png) != pixels(last.png)).any()
    with np.load(last.npz) as file:
        np.testing.assert_array_equal(file["points"], show.frames[demo_runs.STEP])
    line, files = show.fresh(30, 5, 0.9, tmp_path)
    assert line.startswith("30 points in one network evaluation: **") and "compiled" in line
    assert "compiled" not in show.fresh(30, 6, 0.99, tmp_path)[0]
    with np.load(files.npz) as file:
        np.testing.assert_array_equal(file["points"], loaded.samplers[0.9](5, 30))


def test_points_lie_where_they_are_drawn():
    """A point at the right edge reddens pixels there alone; two units wide, one high."""
    real = np.array([[0.0, 0.0]])
    png = scatter_png(np.array([[0.9, 0.0]]), real, half_sides=np.array([1.0, 0.5]))
    image = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), int)
    assert image.shape == (300, 600, 3)
    red = image[60:, :, 0] - image[60:, :, 2] > 40  # below the legend
    rows, columns = np.nonzero(red)
    assert len(rows) and columns.min() > 540 and abs(rows.mean() + 60 - 150) < 6
