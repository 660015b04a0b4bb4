"""The sampling program's arguments and files."""

import unicodedata

import numpy as np
import pytest
from PIL import Image

from drifting_jax import sample
from drifting_jax.commands import class_choice
from drifting_jax.data.class_names import class_table
from drifting_jax.errors import UserError
from drifting_jax.workdir import sample_files

NAMES = ["airplane", "t-shirt", "cat", "8", "dog"]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", [0, 1, 2, 3, 4]),
        ("0-4", [0, 1, 2, 3, 4]),
        ("2", [2]),
        ("2-2", [2]),
        ("4,0,1-2", [4, 0, 1, 2]),
        (" 0, 3 ", [0, 3]),
        ("cat", [2]),
        ("dog,t-shirt,0", [4, 1, 0]),
    ],
)
def test_classes(text, expected):
    assert sample.parse_classes(text, NAMES) == expected


@pytest.mark.parametrize(
    "text, message",
    [
        ("5", "classes run from 0 to 4; found '5'"),
        ("3-5", "classes run from 0 to 4; found '3-5'"),
        ("3-1", "'3-1' runs backwards; write 1-3"),
        ("-1", "no class is called '-1'"),
        ("1-", "no class is called '1-'"),
        ("bird", "no class is called 'bird'; the classes are airplane, t-shirt"),
        ("0,,1", "no class is called ''"),
        ("1,0-2", "names class 1 more than once"),
        ("cat,2", "names class 2 more than once"),
        ("9" * 5000, "classes run from 0 to 4; found '9999"),
        ("0-" + "9" * 30, "classes run from 0 to 4; found '0-9999"),
    ],
)
def test_classes_that_do_not_exist(text, message):
    with pytest.raises(UserError, match=message):
        sample.parse_classes(text, NAMES)


TWELVE = sorted(map(str, range(1, 13)))  # 1, 10, 11, 12, 2, …
SPICES = ["salt", "pepper", "salt, pepper", "Crème fraîche", "1-2", " x "]


@pytest.mark.parametrize(
    "text, names, expected",
    [
        ("8", NAMES, [3]),  # a class of that name, not a number out of range
        ("5", TWELVE, [7]),
        ("12,1", TWELVE, [3, 0]),
        ("0", TWELVE, [0]),  # no class is called so
        ("10-12", TWELVE, [1, 2, 3]),  # only names go so far
        ("18-24", ["18-24", "25-34"], [0]),
        ("0-1", ["18-24", "25-34"], [0, 1]),
        ("001", ["001", "002"], [0]),
        ("0-9", list("0123456789"), list(range(10))),
        ("1-2", SPICES, [4]),
        ('"1-2",0', SPICES, [4, 0]),
        ('"salt, pepper"', SPICES, [2]),
        (' "salt" , "pepper" ', SPICES, [0, 1]),
        ("salt,pepper,pepper", SPICES, [2, 1]),  # else pepper would be there twice
        ("SALT", SPICES, [0]),
        ("crème FRAÎCHE", SPICES, [3]),
        (unicodedata.normalize("NFD", "Crème fraîche"), SPICES, [3]),
        (" x ", SPICES, [5]),
        ("X", SPICES, [5]),
        ("cat", ["cat", "Cat"], [0]),
        ("b, a,c", ["a,b", "b, a", "c"], [1, 2]),
        ("é", ["e\u0301", "é"], [1]),
        ("e\u0301", ["e\u0301", "é"], [0]),
        ("É", ["e\u0301"], [0]),
    ],
)
def test_names_before_numbers(text, names, expected):
    assert sample.parse_classes(text, names) == expected


@pytest.mark.parametrize(
    "text, names, shown",
    [
        ("3-5", TWELVE, ["by number as 3 (12), 4 (2), 5 (3)", "by name as 5 (3), 6 (4), 7 (5)"]),
        ("05", TWELVE, ["by number as 5 (3)", "by name as 7 (5)"]),
        ("1", ["001", "002"], ["by number as 1 (002)", "by name as 0 (001)"]),
        ("salt, pepper", SPICES, ["as 2 (salt, pepper) or as 0 (salt), 1 (pepper)", "quotes"]),
        ("1,2", ["1,2", "x", "y"], ["as 0 (1,2) or as 1 (x), 2 (y)"]),
        ("CAT", ["cat", "Cat"], ["several classes are called 'CAT': 0 (cat), 1 (Cat)"]),
        ("crane", list(class_table()), ["134 (n02012849, crane), 517 (n03126707, crane)"]),
    ],
)
def test_both_readings_of_an_ambiguous_class_are_shown(text, names, shown):
    with pytest.raises(UserError) as error:
        sample.parse_classes(text, names)
    assert all(words in str(error.value) for words in shown), error.value


def test_imagenets_words_for_a_class():
    names = list(class_table())
    for text in ("tench", "Tinca tinca", "tench, Tinca tinca", "TENCH", "n01440764", "N01440764"):
        assert sample.parse_classes(text, names) == [0]
    text = "Golden Retriever, tench, n03126707,1"
    assert sample.parse_classes(text, names) == [207, 0, 517, 1]
    assert sample.parse_classes(",".join(names), names) == list(range(1000))
    assert (
        class_choice.describe_classes([0, 207], names)
        == "classes: 0 (tench), 207 (golden retriever)"
    )
    assert class_choice.describe_classes(range(1000), names).endswith(" and 960 more")
    assert class_choice.describe_classes([2], SPICES) == "classes: 2 (salt, pepper)"


def numbered(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Images of one grey each, `count` of each of three classes."""
    images = np.arange(3 * count, dtype=np.uint8).reshape(-1, 1, 1, 1) * np.ones(
        (4, 4, 1), np.uint8
    )
    return images, np.repeat(np.int32([5, 0, 2]), count)


def test_npz_is_what_evaluation_suites_read(tmp_path):
    images, labels = numbered(4)
    sample_files.write_samples(tmp_path / "x.npz", images, labels, per_class=4)
    with np.load(tmp_path / "x.npz") as file:
        assert file.files == ["arr_0", "arr_1"]
        np.testing.assert_array_equal(file["arr_0"], images)
        np.testing.assert_array_equal(file["arr_1"], labels)
        assert (file["arr_0"].dtype, file["arr_1"].dtype) == (np.uint8, np.int32)
    assert [p.name for p in tmp_path.iterdir()] == ["x.npz"]


@pytest.mark.parametrize("per_class, columns", [(4, 4), (72, 36)])
def test_png_has_one_class_after_another(tmp_path, per_class, columns):
    images, labels = numbered(per_class)
    sample_files.write_samples(tmp_path / "x.png", images, labels, per_class=per_class)
    picture = np.asarray(Image.open(tmp_path / "x.png"))
    rows = 3 * per_class // columns
    assert min(picture.shape) >= 400
    side = images.shape[1]
    pixel = picture.shape[0] // (rows * (side + 1) + 1)  # a line of one pixel around each image
    assert picture.shape == tuple(pixel * (n * (side + 1) + 1) for n in (rows, columns))
    start, tile = pixel * (1 + side // 2), pixel * (side + 1)
    centres = picture[start::tile, start::tile]
    np.testing.assert_array_equal(centres, images[:, 0, 0, 0].reshape(rows, columns))
    assert [p.name for p in tmp_path.iterdir()] == ["x.png"]


def test_a_failed_write_leaves_the_file_before_it(tmp_path, monkeypatch):
    images, labels = numbered(2)
    path = tmp_path / "x.npz"
    sample_files.write_samples(path, images, labels, per_class=2)
    before = path.read_bytes()

    def full(file, **arrays):
        file.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(OSError, match="no space"):
        sample_files.write_samples(path, images, labels, per_class=2)
    assert path.read_bytes() == before


def test_out_is_checked_before_anything_is_computed(tmp_path):
    with pytest.raises(UserError, match=r"must end in \.npz or \.png"):
        sample_files.check_out(tmp_path / "samples.jpg")
    with pytest.raises(UserError, match="folder of --out does not exist"):
        sample_files.check_out(tmp_path / "nowhere" / "samples.npz")
    sample_files.check_out(tmp_path / "samples.npz")
