"""Files found in folders, the cached list of them, and the messages about wrong folders."""

import os
from pathlib import Path

import numpy as np
import pytest
from imagenet_like import CLASSES, write_imagenet_like

from drifting_jax.data import class_names, folder
from drifting_jax.data.facts import Skipped
from drifting_jax.data.folder import open_folder
from drifting_jax.data.names import Names
from drifting_jax.data.records import open_records
from drifting_jax.data.transforms import UnreadableImage
from drifting_jax.errors import UserError


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def images(tmp_path):
    write_imagenet_like(tmp_path / "in", per_class=3, splits=("train", "val"))
    return tmp_path / "in"


def settle(images):
    """Makes folders look as if they had changed long ago, so that their list is cached."""
    for path in [images, *images.rglob("*")]:
        if path.is_dir():
            os.utime(path, (1e9, 1e9))


def listed(records):
    return [(records.name(i), int(records.labels[i])) for i in range(len(records))]


def test_classes_and_files_are_sorted_and_read(images):
    records = open_records(images, "train")
    walked = sorted(
        os.path.relpath(os.path.join(at, name), images / "train")
        for at, _, names in os.walk(images / "train")
        for name in names
    )
    assert [name for name, _ in listed(records)] == walked
    assert records.class_names == sorted(CLASSES)
    assert all(name.startswith(CLASSES[label]) for name, label in listed(records))
    data, label = records.read(8)
    assert data == (images / "train" / records.name(8)).read_bytes() and label == records.labels[8]
    assert len(open_records(images, "test")) == 9


@pytest.mark.parametrize("inner", ["ILSVRC/Data/CLS-LOC", "imagenet"])
def test_layouts_of_downloads_are_found(images, tmp_path, inner):
    (tmp_path / "d" / inner).parent.mkdir(parents=True)
    images.rename(tmp_path / "d" / inner)
    assert len(open_records(tmp_path / "d", "train")) == 14


def test_class_folders_themselves_are_a_training_split(images):
    assert len(open_records(images / "train", "train")) == 14
    with pytest.raises(UserError, match="no test split: looked for val, validation, test"):
        open_records(images / "train", "test")


def test_files_deeper_in_a_class_and_hidden_ones(images):
    deep = images / "train" / CLASSES[0] / "images"
    deep.mkdir()
    (images / "train" / CLASSES[0] / "gray.JPEG").rename(deep / "gray.JPEG")
    (deep / ".hidden.JPEG").touch()
    (deep / "loop").symlink_to(images / "train" / CLASSES[0])
    names = [name for name, _ in listed(open_records(images, "train"))]
    assert f"{CLASSES[0]}/images/gray.JPEG" in names and len(names) == 14


def test_a_flat_folder_is_one_class(images):
    records = open_records(images / "train" / CLASSES[1], "train")
    assert records.class_names == ["unlabelled"] and records.labels.tolist() == [0, 0, 0]


def test_the_list_is_kept_until_a_folder_changes(images, monkeypatch):
    settle(images)
    first = open_folder(images / "train")
    with monkeypatch.context() as patch:
        patch.setattr(folder, "scan", lambda *_: pytest.fail("scanned again"))
        again = open_folder(images / "train")
    assert listed(again) == listed(first) and again.fingerprint == first.fingerprint
    (images / "train" / CLASSES[2] / "new.JPEG").write_bytes(b"x")
    changed = open_folder(images / "train")
    assert len(changed) == len(first) + 1 and changed.fingerprint != first.fingerprint


def test_a_damaged_or_forbidden_cache_is_done_without(images, tmp_path):
    settle(images)
    first = open_folder(images / "train")
    for kept in (tmp_path / "cache").rglob("*.npz"):
        kept.write_bytes(kept.read_bytes()[:300])
    assert listed(open_folder(images / "train")) == listed(first)
    (tmp_path / "file").touch()
    assert listed(open_folder(images / "train", cache=tmp_path / "file" / "x")) == listed(first)


def test_wrong_folders_say_what_was_looked_for_and_found(images, tmp_path):
    with pytest.raises(UserError, match=r"no folder of images: .*nothing"):
        open_records(tmp_path / "nothing", "train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no image files .* expected \.jpeg.*; found nothing"):
        open_records(tmp_path / "empty", "train")
    (tmp_path / "empty" / "notes.txt").touch()
    with pytest.raises(UserError, match=r"found notes\.txt"):
        open_records(tmp_path / "empty", "train")
    (images / "train" / "stray.JPEG").touch()
    with pytest.raises(UserError, match=r"stray\.JPEG.* beside class folders .*n01440764"):
        open_records(images, "train")
    (tmp_path / "only" / "val" / "a").mkdir(parents=True)
    with pytest.raises(UserError, match="no train split: looked for train in it, found val"):
        open_records(tmp_path / "only", "train")


def test_a_file_that_went_away_is_unreadable(images):
    records = open_records(images, "train")
    (images / "train" / records.name(2)).unlink()
    with pytest.raises(UnreadableImage, match="No such file"):
        records.read(2)


def test_a_disk_that_went_away_is_no_unreadable_image(images, tmp_path):
    records = open_records(images, "train")
    (images / "train").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="is gone: is the disk still there"):
        records.read(2)


def test_odd_entries_and_homes_do_not_stop_the_scan(images, monkeypatch):
    (images / "train" / "loop").symlink_to(images / "train" / "loop")
    (images / "train" / "lost+found").mkdir()
    expected = listed(open_records(images, "train"))
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert listed(open_folder(images / "train")) == expected


def test_a_list_of_folders_that_changed_just_now_is_not_kept(images, tmp_path):
    cache = tmp_path / "kept"
    open_folder(images / "train", cache=cache)
    assert not list(cache.rglob("*.npz"))
    settle(images)
    open_folder(images / "train", cache=cache)
    assert len(list(cache.rglob("*.npz"))) == 1


def test_names_of_any_bytes():
    names = ["", "a/b.jpg", "é", os.fsdecode(b"\xff.jpg")]
    packed = Names.of(names)
    assert list(packed) == names and packed.data.dtype == np.uint8
    with pytest.raises(IndexError):
        packed[4]


def test_imagenet_classes():
    table = class_names.class_table()
    assert len(table) == 1000 and list(table) == sorted(table)
    assert (
        list(table).index("n02099601") == 207
        and class_names.title("n02099601") == "golden retriever"
    )
    assert class_names.aliases("n01440764") == ["n01440764", "tench", "Tinca tinca"]
    assert class_names.title("cat") == "cat" and class_names.aliases("cat") == ["cat"]


def test_skipped_files_are_counted_by_their_ending(images):
    plain = open_folder(images / "train")
    assert plain.skipped == ()
    for name in ("b.txt", "a.TXT", "c.txt", "d.txt", "image.jxl", ".DS_Store", "README"):
        (images / "train" / CLASSES[0] / name).touch()
    (images / "train" / "LICENSE.txt").touch()
    (images / "train" / "empty").mkdir()
    (images / "train" / ".git").mkdir()
    settle(images)
    for _ in range(2):  # listed, then from the cache
        found = open_folder(images / "train")
        assert listed(found) == listed(plain) and found.fingerprint == plain.fingerprint
        inside = [f"{CLASSES[0]}/{name}" for name in ("a.TXT", "b.txt", "image.jxl")]
        assert found.skipped == (
            Skipped(".txt", 5, ("LICENSE.txt", *inside[:2])),
            Skipped(".jxl, which needs: pip install pillow-jxl-plugin", 1, (inside[2],)),
            Skipped("class folder without images", 1, ("empty",)),
            Skipped("hidden", 1, (f"{CLASSES[0]}/.DS_Store",)),
            Skipped("no ending", 1, (f"{CLASSES[0]}/README",)),
        )


def test_a_cached_list_of_an_earlier_version_is_made_again(images, tmp_path):
    settle(images)
    first = open_folder(images / "train")
    (kept,) = (tmp_path / "cache").rglob("*.npz")
    with np.load(kept) as file:
        arrays = {name: file[name] for name in file.files}
    # Earlier versions kept the times of the folders alone.
    earlier = {name: array for name, array in arrays.items() if name != "states"}
    np.savez(kept, **earlier, changed=arrays["states"][:, 0])
    again = open_folder(images / "train")
    assert listed(again) == listed(first) and again.fingerprint == first.fingerprint
    with np.load(kept) as file:
        assert set(file.files) == set(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(file[name], array)
