"""Splits and classes in folders as downloads have them; folders that can be read in two ways."""

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
from imagenet_like import encoded, picture
from PIL import Image
from tfds_files import write_tfds

from drifting_jax.data import file_list, image_formats, layout
from drifting_jax.data.facts import Skipped
from drifting_jax.data.folder import open_folder
from drifting_jax.data.records import describe_records, open_earlier_records, open_records
from drifting_jax.data.transforms import load
from drifting_jax.errors import UserError

PIXEL = encoded(picture(0, 8, 8), "PNG")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path):
    return tmp_path / "data"


def fill(root: Path, *names: str) -> None:
    """Writes a small file for each name."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(PIXEL)


def classes(root: Path, *folders: str, count: int = 2) -> None:
    """Writes images into class folders."""
    fill(root, *(f"{folder}/{i}.jpg" for folder in folders for i in range(count)))


def found(root: Path, split: str = "train") -> tuple[str, list[str], int]:
    """The folder, the classes and the number of images of a split."""
    records = open_records(root, split)
    return str(records.where.relative_to(root)), records.class_names, len(records)


@pytest.mark.parametrize("train", ["train", "Train", "TRAIN", "training", "Training"])
@pytest.mark.parametrize("test", ["val", "Valid", "VALIDATION", "test", "Testing"])
def test_splits_in_any_spelling(root, train, test):
    classes(root, f"{train}/cat", f"{train}/dog", f"{test}/cat", f"{test}/dog")
    fill(root, f"{train}/dog/more.png")
    assert found(root) == (train, ["cat", "dog"], 5)
    assert found(root, "test") == (test, ["cat", "dog"], 4)


@pytest.mark.parametrize(
    "train, test",
    [
        ("training_set", "test_set"),
        ("train", "test1"),
        ("train2017", "val2017"),
        ("Train-Images", "Test-Images"),
        ("train", "dev"),
    ],
)
def test_longer_names_of_splits(root, train, test):
    classes(root, f"{train}/cat", f"{train}/dog", test)
    assert found(root) == (train, ["cat", "dog"], 4)
    assert found(root, "test") == (test, ["unlabelled"], 2)


@pytest.mark.parametrize("names", [("train1", "train2"), ("test1", "test2"), ("Trains", "testers")])
def test_classes_that_only_resemble_splits(root, names):
    classes(root, *names)
    assert found(root) == (".", sorted(names), 4)


@pytest.mark.parametrize(
    "folders, where, names",
    [
        (["flowers/daisy", "flowers/rose"], "flowers", ["daisy", "rose"]),
        (["a/b/daisy", "a/b/rose"], "a/b", ["daisy", "rose"]),
        (["images/train", "images/val"], "images/train", ["unlabelled"]),
        (["images/train/cat", "images/val/cat"], "images/train", ["cat"]),
        (["pets/Train/cat", "pets/Train/dog", "pets/Test/cat"], "pets/Train", ["cat", "dog"]),
        (["train/train/cat", "train/train/dog", "test/test/cat"], "train/train", ["cat", "dog"]),
        (["train/images/cat", "train/images/dog"], "train/images", ["cat", "dog"]),
        (["train/images", "valid/images"], "train", ["images"]),
        # One class: what is below it are its images.
        (["cat"], ".", ["cat"]),
        (["cat/images"], ".", ["cat"]),
        (["train/cat/indoors", "train/cat/outdoors"], "train", ["cat"]),
    ],
)
def test_folders_in_folders(root, folders, where, names):
    classes(root, *folders)
    (root / "labels").mkdir()
    (root / "labels" / "1.txt").touch()
    fill(root, "__MACOSX/flowers/._1.jpg")
    assert found(root)[:2] == (where, names)


def test_a_class_with_files_beside_folders_is_one_class(root):
    fill(root, "cat/1.jpg", "cat/more/2.jpg", "cat/others/3.jpg")
    assert found(root) == (".", ["cat"], 3)


@pytest.mark.parametrize("name", ["train", "Test", "val", "training", "VALIDATION"])
@pytest.mark.parametrize("inner", ["", "/steam", "/images"])
def test_a_class_that_is_called_like_a_split_is_refused(root, name, inner):
    classes(root, "airplane", "bicycle", f"{name}{inner}")
    for split in ("train", "test"):
        with pytest.raises(UserError) as error:
            open_records(root, split)
        told = str(error.value)
        assert "can be read in two ways" in told and "\n" not in told
        assert f"{name} beside airplane, bicycle" in told
        assert f"the path {root / name};" in told and f"ln -s {root} NEW/train" in told
    # Both ways that the message shows:
    assert len(open_records(root / name, "train")) == 2
    (root.parent / "NEW").mkdir()
    (root.parent / "NEW" / "train").symlink_to(root)
    assert open_records(root.parent / "NEW", "train").class_names == sorted(
        ["airplane", "bicycle", name]
    )


@pytest.mark.parametrize(
    "folders",
    [
        ["train", "masks"],
        ["train", "test", "masks"],
        ["train/cat", "train/dog", "samples"],
        ["train/cat", "train/dog", "test", "samples"],
        ["val/cat", "val/dog", "cat", "dog"],
        ["all/airplane", "all/train", "all/bicycle"],
    ],
)
def test_splits_beside_other_images_are_refused(root, folders):
    classes(root, *folders)
    with pytest.raises(UserError, match="can be read in two ways"):
        open_records(root, "train")


def test_splits_of_the_same_classes_are_splits_whatever_lies_beside_them(root):
    classes(root, "train/cat", "train/dog", "val/cat", "val/dog", "extra", "samples")
    fill(root, "preview.png")
    assert found(root) == ("train", ["cat", "dog"], 4)
    assert describe_records(open_records(root, "train")) == [
        f"data: 4 images of 2 classes (cat, dog) in {root}/train, format folder",
        "skipped 1 (another split): val (4 images)",
        "skipped 2 (folder beside the splits): extra, samples",
        "skipped 1 (image file beside the splits): preview.png",
    ]


def test_other_splits_are_counted_up_to_a_limit(root, monkeypatch):
    classes(root, "train/cat", "val/cat", "Test/cat", count=3)
    (told,) = open_records(root, "train").skipped
    assert told.names == ("Test (3 images)", "val (3 images)")
    monkeypatch.setattr(layout, "_MOST_ENTRIES", 3)  # the folder, and two of its files
    (told,) = open_records(root, "test").skipped
    assert told.names == ("Test (2 images or more)", "train (2 images or more)")


def test_the_path_of_a_split_holds_classes(root):
    classes(root, "train/airplane", "train/train", "train/val")
    assert found(root) == ("train", ["airplane", "train", "val"], 6)
    assert found(root / "train") == (".", ["airplane", "train", "val"], 6)


def test_empty_folders_beside_classes_are_no_splits(root):
    classes(root, "cat", "dog")
    (root / "train").mkdir()
    (root / "test" / "cat").mkdir(parents=True)
    assert found(root) == (".", ["cat", "dog"], 4)
    assert "skipped 2 (class folder without images): test, train" in describe_records(
        open_records(root, "train")
    )


def test_one_split_in_several_folders_is_refused(root):
    classes(root, "train/cat", "Training/cat", "test/cat")
    with pytest.raises(UserError, match=r"holds Training and train, which .* the path of one"):
        open_records(root, "train")
    assert found(root, "test")[0] == "test"
    classes(root, "val/cat")
    assert found(root, "test")[0] == "val"


def test_splits_within_classes_are_refused(root):
    classes(root, "bottle/train", "bottle/test", "cable/train", "cable/test")
    with pytest.raises(UserError, match=r"holds bottle/test and bottle/train: .* NEW/train"):
        open_records(root, "train")
    assert found(root / "bottle") == ("train", ["unlabelled"], 2)


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "JPEG2000", "AVIF", "PPM", "TGA", "ICO"])
def test_images_of_every_format_are_read(root, kind):
    red = Image.new("RGB", (32, 32), "red")
    root.mkdir()
    for suffix in {s for s, k in Image.registered_extensions().items() if k == kind}:
        (root / f"a{suffix}").write_bytes(encoded(red, kind))
        (root / f"b{suffix.upper()}").write_bytes(encoded(red, kind))
    records = open_records(root, "train")
    assert len(records) == len(list(root.iterdir())) > 0 and not records.skipped
    for i in range(len(records)):
        assert np.abs(load(records.read(i)[0], 16).astype(int) - [255, 0, 0]).max() < 10


def test_a_folder_of_files_that_pillow_does_not_read_says_what_does(root):
    fill(root, "a/1.jxl", "b/2.JXL")
    with pytest.raises(UserError, match=r"found a, b; \.jxl needs: pip install pillow-jxl-plugin$"):
        open_records(root, "train")


def test_class_folders_of_any_ending_are_classes(root):
    fill(root, "cat/1.jfif", "dog/1.JPG", "fox/1.Avif", "owl/1.jpe", "bat/1.jp2", "emu/1.mpo")
    assert found(root)[1] == ["bat", "cat", "dog", "emu", "fox", "owl"]


def test_documents_and_videos_are_skipped(root):
    fill(
        root, "a/1.jpg", *(f"a/1.{end}" for end in ("pdf", "ps", "eps", "mpg", "wmf", "svg", "h5"))
    )
    records = open_records(root, "train")
    assert len(records) == 1 and sum(skipped.count for skipped in records.skipped) == 7


def test_a_plugin_is_used_where_it_is_installed(root, tmp_path, monkeypatch):
    fill(root, "a/1.heic", "a/1.jpg")
    if ".heic" not in image_formats.readable_suffixes():
        assert "skipped 1 (.heic, which needs: pip install pillow-heif): a/1.heic" in (
            describe_records(open_records(root, "train"))
        )
    (tmp_path / "pillow_heif.py").write_text(
        "from PIL import Image\n"
        "def register_heif_opener():\n"
        "    Image.register_open('HEIF', Image.OPEN['PNG'][0], Image.OPEN['PNG'][1])\n"
        "    Image.register_extension('HEIF', '.heic')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with own_plugins(monkeypatch):
        assert len(open_records(root, "train")) == 2


@contextlib.contextmanager
def own_plugins(monkeypatch):
    """Loads Pillow's plugins again, and forgets them afterwards."""
    caches = image_formats.readable_suffixes, image_formats.register_plugins
    with monkeypatch.context() as patch:
        for table in ("OPEN", "EXTENSION"):
            patch.setattr(Image, table, dict(getattr(Image, table)))
        patch.setattr(Image, "ID", list(Image.ID))
        for cache in caches:
            cache.cache_clear()
        yield
    for cache in caches:
        cache.cache_clear()


FOREIGN = [
    ("dataset_info.json", {"builder_name": "imagefolder", "splits": {"train": {"name": "train"}}}),
    ("dataset_info.json", {"features": {}}),
    ("dataset_info.json", ["a"]),
    ("info.json", {"name": "my pictures", "license": "CC0"}),
    ("info.json", {"format": "png"}),
    ("info.json", "text"),
    ("info.json", None),
]


@pytest.mark.parametrize("name, content", FOREIGN)
@pytest.mark.parametrize("where", ["", "train", "train/a"])
def test_json_files_of_others_are_skipped(root, name, content, where):
    classes(root, "train/a", "train/b")
    (root / where / name).write_text("{no json" if content is None else json.dumps(content))
    assert found(root) == ("train", ["a", "b"], 4)
    folder = open_records(root / "train", "train")
    assert folder.class_names == ["a", "b"]
    if where:
        assert Skipped(".json", 1, (str(Path(where, name).relative_to("train")),)) in folder.skipped


def test_a_damaged_description_of_prepared_records_is_told(root):
    classes(root, "train/a")
    (root / "train" / "info.json").write_text('{"format": "drifting_jax.im')
    (root / "train" / "00000-of-00001.array_record").touch()
    with pytest.raises(UserError, match=r"info\.json does not describe prepared records"):
        open_records(root, "train")


def test_a_prepared_version_is_found_among_folders_of_others(root):
    described = {"version": "3.0.1", "shape": (4, 4, 1), "class_names": ["0", "1"]}
    write_tfds(root, "mnist", labels={"train": [0, 1, 1]}, **described)
    fill(root, "mnist/9.9.9/1.jpg")
    (root / "mnist" / "9.9.9" / "dataset_info.json").write_text("{}")
    records = open_records(root / "mnist", "train")
    assert records.format == "tfds" and len(records) == 3


def test_a_replaced_tree_of_fixed_times_is_listed_again(root, monkeypatch):
    def settle():
        for folder in (root / "a", root):
            file_list.os.utime(folder, (1577836800, 1577836800))

    fill(root, "a/1.png")
    settle()
    assert len(open_folder(root)) == 1
    # A file system that keeps no other time, and gives the same inode.
    state = file_list.os.stat

    def fixed(path, *args, **kwargs):
        real = state(path, *args, **kwargs)
        fields = [*real[:1], 7, *real[2:]]
        ours = {"st_ctime_ns": real.st_mtime_ns, "st_mtime_ns": real.st_mtime_ns}
        return file_list.os.stat_result(fields, ours)

    with monkeypatch.context() as patch:
        patch.setattr(file_list.os, "stat", fixed)
        (root / "a" / "1.png").rename(root / "a" / "2.png")
        settle()
        assert [open_folder(root).name(0)] == ["a/2.png"]
        scans = []
        patch.setattr(file_list, "_walk", lambda *args: scans.append(args))
        assert [open_folder(root).name(0)] == ["a/2.png"] and not scans
    # A usual file system: the change time tells of an exchanged file, too.
    (root / "a" / "2.png").rename(root / "a" / "3.png")
    (root / "a" / "3.png").rename(root / "a" / "2.png")
    settle()
    assert [open_folder(root).name(0)] == ["a/2.png"]


def test_earlier_runs_find_what_they_began_with(root):
    classes(root, "airplane", "train")
    fill(root, "train/3.jfif", "flowers/a/1.jpg", "flowers/b/1.jpg", "flowers/b/2.avif")
    records = open_earlier_records(root)
    assert records.where == root / "train" and len(records) == 2
    fill(root / "doubled", "flowers/a/1.jpg", "flowers/b/1.jpg", "flowers/b/2.avif")
    records = open_earlier_records(root / "doubled")
    assert records.class_names == ["flowers"] and len(records) == 2
