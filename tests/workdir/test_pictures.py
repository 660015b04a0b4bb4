"""The animation of samples over training, from the grids that a run has left."""

import numpy as np
import pytest
from PIL import Image, ImageSequence

from drifting_jax.workdir import pictures
from drifting_jax.workdir.image_files import save_png


def grid(step, shape=(40, 60, 3)):
    """A grey picture that differs from step to step."""
    return np.full(shape, 3 * step % 256, np.uint8)


def write_grids(folder, steps, **shape):
    for step in steps:
        save_png(folder / f"generator_samples_{step:08d}.png", grid(step, **shape))


def frames_of(path):
    """The frames [n, h, w] and how long each is shown, in milliseconds."""
    with Image.open(path) as animation:
        found = [(np.asarray(f.convert("L")), f.info["duration"]) for f in
                 ImageSequence.Iterator(animation)]  # fmt: skip
    return np.stack([frame for frame, _ in found]), [duration for _, duration in found]


@pytest.mark.parametrize("channels", [1, 3])
def test_all_grids_in_the_order_of_their_steps(tmp_path, channels):
    write_grids(tmp_path, [40, 20, 60], shape=(40, 60, channels))
    pictures.write_training(tmp_path / "training.gif", tmp_path)
    frames, durations = frames_of(tmp_path / "training.gif")
    assert [frame[-1, 0] for frame in frames] == [60, 120, 180]
    assert (frames[:, -40:] == frames[:, -1:, :1]).all()  # below the caption
    assert durations == [500, 500, 2500]


def test_damaged_and_other_grids_are_left_out(tmp_path, errors):
    write_grids(tmp_path, [10, 20, 30, 50])
    write_grids(tmp_path, [5], shape=(41, 60, 3))
    cut = tmp_path / "generator_samples_00000020.png"
    cut.write_bytes(cut.read_bytes()[:50])
    (tmp_path / "generator_samples_00000040.png").write_bytes(b"")
    save_png(tmp_path / "generator_samples_of_mine.png", grid(1))
    pictures.write_training(tmp_path / "training.gif", tmp_path)
    frames, _ = frames_of(tmp_path / "training.gif")
    assert [frame[-1, 0] for frame in frames] == [30, 90, 150]
    assert errors == []


def test_a_long_run_has_sixty_frames(tmp_path):
    write_grids(tmp_path, range(1, 82), shape=(4, 40, 3))
    pictures.write_training(tmp_path / "training.gif", tmp_path)
    frames, durations = frames_of(tmp_path / "training.gif")
    shown = frames[:, -1, 0].astype(int)
    assert (len(shown), shown[0], shown[-1]) == (60, 3, 243)
    assert set(np.diff(shown)) == {3, 6}
    assert durations == [80] * 59 + [2500]


def test_large_grids_become_small_frames_and_fewer(tmp_path):
    rng = np.random.default_rng(0)
    for step in range(13):
        noise = rng.integers(0, 256, (300, 620, 1), np.uint8).repeat(2, 0)  # hardly compressed
        noise[-8:] = 20 * step
        save_png(tmp_path / f"generator_samples_{step:08d}.png", noise)
    pictures.write_training(tmp_path / "training.gif", tmp_path)
    assert 1_500_000 < (tmp_path / "training.gif").stat().st_size <= 4_000_000
    frames, _ = frames_of(tmp_path / "training.gif")
    assert 340_000 < frames[0].size < 375_000
    assert list(frames[:, -1, 0]) == [0, 40, 80, 120, 160, 200, 240]


@pytest.mark.parametrize("steps", [[], [100]])
def test_nothing_moves_in_fewer_than_two_grids(tmp_path, errors, steps):
    write_grids(tmp_path, steps)
    pictures.write_training(tmp_path / "training.gif", tmp_path)
    assert not (tmp_path / "training.gif").exists()
    assert errors == []
