"""A run on a folder of images ends with their page, and the command writes it again."""

import shutil

import pytest
import tiny_images_config
from imagenet_like import write_imagenet_like

from drifting_jax.config import resolve
from drifting_jax.errors import UserError
from drifting_jax.training import run
from drifting_jax.training.nearest_images import show_nearest


@pytest.mark.slow
def test_a_run_on_a_folder_of_images(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data, workdir = tmp_path / "in", tmp_path / "run"
    write_imagenet_like(data)
    config = tiny_images_config.get_config()
    config.data.path, config.train.num_steps = str(data), 4
    assert run.run(resolve(config), workdir=workdir) == 0
    printed = capsys.readouterr().out
    assert "median distance of pixels to the nearest training image: " in printed
    assert f"samples and their nearest training images: {workdir / 'report.html'}" in printed
    page = (workdir / "report.html").read_text()
    assert "the features of the run&#x27;s own encoder" in page
    assert (workdir / "complete.json").is_file() and (workdir / "samples" / "nearest.png").is_file()

    (workdir / "report.html").unlink()
    said = show_nearest(workdir)
    assert said in printed and (workdir / "report.html").read_text() == page
    shutil.move(data, tmp_path / "moved")
    with pytest.raises(UserError, match="does not exist"):
        show_nearest(workdir)
    assert show_nearest(workdir, training_images=str(tmp_path / "moved"))

    config.train.num_steps = 5  # a page that cannot be made costs the page alone
    config.data.path = str(tmp_path / "moved")
    monkeypatch.setattr(run, "show_nearest", lambda _: show_nearest(tmp_path / "none"))
    assert run.run(resolve(config), workdir=workdir) == 0
    assert "left out: " in capsys.readouterr().out
