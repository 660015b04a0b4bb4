"""Folders are whole or not there."""

import pytest

from drifting_jax.files import new_folder


def test_a_new_folder_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "a" / "sampler"
    with new_folder(path) as partial:
        (partial / "x").write_text("1")
        assert not path.exists()
    assert [p.name for p in path.iterdir()] == ["x"] and path.stat().st_mode & 0o005 == 0o005
    assert [p.name for p in path.parent.iterdir()] == ["sampler"]


def test_a_failure_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "b") as partial:
        (partial / "x").write_text("1")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
