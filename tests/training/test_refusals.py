"""What a workdir and a config must be before a run begins."""

import sys
from pathlib import Path

import pytest
from tiny_run import config

from drifting_jax.errors import UserError
from drifting_jax.training import restore, run
from drifting_jax.workdir.opening import open_workdir


def test_a_workdir_of_others_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds files but no config\.json"):
        run.run(config(), workdir=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(UserError, match=r"must be a directory; .*notes\.txt is a file"):
        run.run(config(), workdir=tmp_path / "notes.txt")


def test_a_mistake_can_be_mended_in_the_same_workdir(tmp_path, capsys):
    for changes, message in [
        ({"mesh__data": 3, "mesh__fsdp": 3}, r"config\.mesh: .* found data=3 fsdp=3; with 8"),
        ({"mesh__data": 8, "train__generated_per_label": 3}, r"config\.train does not fit"),
        ({"model__patch_size": 3}, r"config\.model does not fit .* must divide image_size 8"),
        ({"encoder__mask_patch_size": 3}, r"config\.encoder does not fit .* mask_patch_size 3"),
        ({"encoder__path": str(tmp_path / "none")}, r"config\.encoder\.path must be the work"),
    ]:
        with pytest.raises(UserError, match=message):
            run.run(config(**changes), workdir=tmp_path / "run")


def test_a_missing_tracker_is_found_before_anything_is_made(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(UserError, match="needs the package trackio"):
        run.run(config(tracker="trackio"), workdir=tmp_path / "run")
    with pytest.raises(
        UserError, match=r"config\.tracker must be one of .*'trackio'; found 'none at"
    ):
        run.run(config(tracker="none at all"), workdir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_there_is_nothing_to_sample(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        restore.load_run(tmp_path)
    with open_workdir(config(), tmp_path / "run"):
        pass
    with pytest.raises(UserError, match="has no generator yet"):
        restore.load_run(tmp_path / "run")


def test_a_bucket_is_no_directory():
    with pytest.raises(UserError, match=r"mount a bucket first.* gs:/bucket/run"):
        run.run(config(), workdir=Path("gs://bucket/run"))
