"""Pairs in files: what is read, what a record holds, and what is refused in one line."""

import numpy as np
import pytest

from drifting_jax.errors import UserError
from drifting_jax.pairs.data import Pairs, PairSource, as_floats, read_conditions, read_pairs
from drifting_jax.pairs.facts import PairFacts, facts_of, frozen_line
from drifting_jax.pairs.pictures import rows_of_pairs


def write(path, **arrays):
    rng = np.random.default_rng(0)
    given = {
        "condition": rng.normal(size=(6, 3)),
        "image": rng.integers(0, 256, (6, 4, 4, 1), np.uint8),
    } | arrays
    np.savez(path, **{name: array for name, array in given.items() if array is not None})
    return given


def test_pairs_are_read_and_split(tmp_path):
    given = write(tmp_path / "p.npz")
    pairs = read_pairs(str(tmp_path / "p.npz"))
    assert pairs.conditions.dtype == np.float32 and pairs.images.dtype == np.uint8
    np.testing.assert_allclose(pairs.conditions, given["condition"], rtol=1e-6)
    kept, others = pairs.split(2)
    np.testing.assert_array_equal(kept.images, given["image"][:4])
    np.testing.assert_array_equal(others.images, given["image"][4:])
    assert pairs.split(0)[1] is None
    np.testing.assert_array_equal(pairs.spread(3).images, given["image"][[1, 3, 5]])
    with pytest.raises(UserError, match="held_out must be below the 6 pairs; found 6"):
        pairs.split(6)
    with_image = read_conditions(str(tmp_path / "p.npz"), with_images=True)
    np.testing.assert_array_equal(with_image[1], given["image"])
    assert read_conditions(str(tmp_path / "p.npz"))[1] is None
    np.save(tmp_path / "c.npy", np.arange(4))
    conditions, images = read_conditions(str(tmp_path / "c.npy"), with_images=True)
    assert conditions.shape == (4, 1) and images is None


def test_a_record_has_the_images_of_its_neighbours(tmp_path):
    condition = np.array([0.0, 10.0, 2.0, 11.0])  # from -1 to 1 once scaled
    image = np.full((4, 2, 2, 3), np.array([0, 255, 51, 102], np.uint8)[:, None, None, None])
    write(tmp_path / "p.npz", condition=condition, image=image)
    pairs = read_pairs(str(tmp_path / "p.npz"))
    source = PairSource(pairs, facts_of(pairs).scaling, neighbours=1)
    record = source[2]
    np.testing.assert_allclose(record["condition"], [(2 - 5.5) / 5.5], rtol=1e-6)
    assert record["target"].shape == (2, 2, 2, 3) and record["target"].dtype == np.float32
    np.testing.assert_allclose(record["target"][:, 0, 0, 0], [-0.6, -1.0], atol=1e-6)
    np.testing.assert_allclose(record["distance"], [0, 2 / 5.5], atol=1e-6)
    plain = PairSource(pairs, facts_of(pairs).scaling)[1]
    assert "distance" not in plain and plain["target"].max() == 1


def test_entries_that_are_only_centred_are_told():
    conditions = np.random.default_rng(0).normal(size=(6, 2, 4)).astype(np.float32)
    images = np.zeros((6, 4, 4, 1), np.uint8)
    conditions[..., 1] = 3  # constant: nothing is lost
    pairs = Pairs(conditions, images)
    assert frozen_line(facts_of(pairs), pairs) is None
    conditions[..., 2] = np.linspace(0, 5e-5, 12, dtype=np.float32).reshape(6, 2)
    line = frozen_line(facts_of(pairs), pairs)
    assert line.startswith("warning: 1 of the 4 entries") and "\n" not in line
    assert "below 0.0001, first entry 2 (range 5e-05), and are only centred" in line


def test_facts_pass_through_json():
    facts = PairFacts.from_record(
        {
            "condition": [2],
            "image": [4, 4, 3],
            "makes_bytes": True,
            "scaling": {"centre": [0, 1], "half_range": [1, 2]},
        },
        "data.json",
    )
    good = facts.record()
    assert PairFacts.from_record(good, "data.json").record() == good
    for bad in (
        {},
        {**good, "image": [4, 4]},
        {**good, "image": [4, 4, 0]},
        {**good, "condition": [3]},
        {**good, "condition": 2},
        {**good, "makes_bytes": 1},
        {**good, "scaling": {"centre": [0, 1], "half_range": [1, -2]}},
    ):
        with pytest.raises(UserError, match="does not hold"):
            PairFacts.from_record(bad, "data.json")


def test_a_picture_shows_the_condition_the_target_and_samples(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 1), np.uint8)
    write(tmp_path / "p.npz", condition=image[:, ::2, ::2].astype(float), image=image)
    pairs = read_pairs(str(tmp_path / "p.npz"))
    samples = as_floats(image)[:, None].repeat(2, axis=1)
    tiles = rows_of_pairs(pairs.conditions, image, samples, facts_of(pairs))
    assert tiles.shape == (5, 4, 4, 4, 1) and tiles.dtype == np.uint8
    for column in (1, 2, 3):
        np.testing.assert_array_equal(tiles[:, column], image)
    shown = tiles[:, 0].astype(float)
    np.testing.assert_array_equal(shown[:, ::2, ::2], shown[:, 1::2, 1::2])
    assert np.corrcoef(shown[:, ::2, ::2].ravel(), image[:, ::2, ::2].ravel())[0, 1] > 0.99
    assert rows_of_pairs(pairs.conditions, None, samples, facts_of(pairs)).shape[1] == 3


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"image": None}, "must hold the arrays condition and image; found no image"),
        ({"condition": np.zeros((6, 0))}, r"must be numbers \[n, ...\], not empty; found \[6, 0\]"),
        ({"condition": np.array(["a"] * 6)}, "must be numbers"),
        ({"condition": np.full((6, 2), np.nan)}, "condition of .* must be finite; entry 0 is not"),
        ({"condition": np.full((6, 2), 1e300)}, "condition of .* must be finite"),
        ({"condition": np.zeros((5, 3))}, "found 5 conditions and 6 images"),
        ({"image": np.zeros((6, 4, 4), np.uint8)}, r"write image\[\.\.\., None\]"),
        (
            {"image": np.zeros((6, 4, 4, 1), np.int64)},
            "or floats from -1 to 1; found .*int64",
        ),
        ({"image": np.full((6, 4, 4, 1), 200.0)}, "found 200 to 200: scale them, or store uint8"),
        ({"image": np.full((6, 4, 4, 1), np.inf)}, "image of .* must be finite"),
    ],
)
def test_bad_files_are_one_line(tmp_path, arrays, says):
    write(tmp_path / "p.npz", **arrays)
    with pytest.raises(UserError, match=says) as found:
        read_pairs(str(tmp_path / "p.npz"))
    assert "\n" not in str(found.value)


def test_files_that_are_none(tmp_path):
    (tmp_path / "p.npz").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(UserError, match=r"p\.npz cannot be read as \.npz"):
        read_pairs(str(tmp_path / "p.npz"))
    with pytest.raises(UserError, match="must name the pairs"):
        read_pairs("")
    with pytest.raises(UserError, match="is no file"):
        read_pairs(str(tmp_path))
    np.savez(tmp_path / "i.npz", image=np.zeros((1, 2, 2, 1), np.uint8))
    with pytest.raises(UserError, match="must hold the array condition; found none"):
        read_conditions(str(tmp_path / "i.npz"))
