"""The members of every source, the table of sources, and the small sources in detail."""

import pickle
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from imagenet_like import CLASSES, write_imagenet_like
from sklearn.datasets import load_digits
from tfds_files import CIFAR10, write_tfds

from drifting_jax.config import base_config, resolve
from drifting_jax.data.digits import DigitsSource
from drifting_jax.data.points import TARGETS, PointsSource
from drifting_jax.data.records import open_records
from drifting_jax.data.shard_writer import ShardWriter
from drifting_jax.data.shards import LATENTS
from drifting_jax.data.sources import (
    SMALL_SOURCES,
    SOURCES,
    DataSpec,
    as_arrays,
    data_spec,
    make_source,
)
from drifting_jax.data.tfds import TfdsSource
from drifting_jax.data.transforms import Augmentation
from drifting_jax.errors import UserError


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with tiny data sets in place of MNIST and CIFAR-10."""
    folder = tmp_path_factory.mktemp("tfds")
    digits = [str(i) for i in range(10)]
    splits = {"train": [(3 * i) % 10 for i in range(40)], "test": [0, 5, 9]}
    write_tfds(
        folder, "mnist", version="3.0.1", shape=(28, 28, 1), class_names=digits, labels=splits
    )
    splits = {"train": [3, 0, 9], "test": [0, -1, 1]}
    write_tfds(
        folder,
        "cifar10",
        version="3.0.2",
        shape=(32, 32, 3),
        class_names=CIFAR10,
        labels=splits,
    )
    return str(folder)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        write_imagenet_like(folder / "in", per_class=3)
        yield folder / "in"


@pytest.fixture(scope="module")
def latents(images, tmp_path_factory):
    """Random moments of two views, as of images of side 32, in a prepared split."""
    records, folder = open_records(images, "train"), tmp_path_factory.mktemp("latents")
    plan = {"format": LATENTS, "image_size": 32, "crop": "random_resized", "views": 2,
            "latent_shape": [4, 4, 4], "scale": 0.5}  # fmt: skip
    writer = ShardWriter(folder / "train", records, plan=plan, records_per_shard=len(records))
    writer.open()
    journal, rng = writer.journal(0), np.random.default_rng(0)
    for _ in range(len(records)):
        journal.append(rng.uniform(0.1, 1, (2, 2, 4, 4, 4)).astype("<f2").tobytes())
    writer.finish(0, journal)
    writer.complete()
    return folder


def section(source, path="", **changes):
    """A config's `data` section."""
    fields = {"image_size": 32, "latent": False, "decoder": "pillow"}
    return SimpleNamespace(source=source, path=str(path), **(fields | changes))


@pytest.mark.parametrize("kind", ["digits", "mnist", "cifar10", "images", "latents", "points"])
def test_every_source_has_the_members_of_the_protocol(kind, prepared, images, latents):
    source = {
        "digits": lambda: make_source(section("digits"), "train"),
        "mnist": lambda: make_source(section("mnist", prepared), "train"),
        "cifar10": lambda: make_source(section("cifar10", prepared), "train"),
        "images": lambda: make_source(section("images", images), "train"),
        "latents": lambda: make_source(section("images", latents, latent=True), "train"),
        "points": lambda: PointsSource("two_moons", 20, seed=0),
    }[kind]()
    flip = Augmentation(flip=True)
    labels = source.labels
    assert labels.shape == (len(source),) and labels.dtype == np.int32
    assert source.num_classes == len(source.class_names) > labels.max()
    for record in (source[1], source.draw(1, np.random.default_rng(0), flip)):
        assert set(record) == {"image", "label"}
        assert record["image"].shape == source.image_shape
        assert record["image"].dtype == source.image_dtype == np.dtype(source.image_dtype)
        assert record["label"] == labels[1] and record["label"].dtype == np.int32
    again = pickle.loads(pickle.dumps(source))
    drawn = [x.draw(2, np.random.default_rng(5), flip)["image"] for x in (source, again)]
    np.testing.assert_array_equal(*drawn)
    assert source.labels_are_cheap
    assert "1" in source.name(1) or CLASSES[0] in source.name(1)
    is_small = kind in ("digits", "mnist", "cifar10", "points")
    assert (source.fingerprint == "") == is_small
    assert source.facts.crop == ("random_resized" if kind == "latents" else None)
    formats = {"images": "folder", "latents": LATENTS, "mnist": "tfds", "cifar10": "tfds"}
    assert source.facts.format == formats.get(kind, "memory")
    assert (source.facts.where is None) == (source.facts.format == "memory")


def test_labels_of_encoded_tfds_records_are_not_cheap(prepared):
    source = make_source(section("images", Path(prepared) / "mnist"), "train")
    assert not source.labels_are_cheap and source.facts.format == "tfds"


@pytest.mark.parametrize(
    ("task", "field", "known"),
    [("generator", "source", tuple(SOURCES)), ("toy", "target", TARGETS)],
)
def test_the_configs_choices_are_the_sources(task, field, known):
    """The config cannot import the table, so it repeats the names."""
    config = base_config(task)
    config.data[field] = "unknown"
    with pytest.raises(UserError, match=rf"data\.{field} must be one of") as caught:
        resolve(config)
    choices = str(caught.value).partition(" must be one of ")[2].partition(";")[0]
    assert tuple(re.findall(r"\w+", choices)) == known


def test_the_table_describes_the_sources(prepared, images, latents):
    assert SMALL_SOURCES == ("digits", "mnist", "fashion_mnist", "cifar10", "cifar100")
    assert data_spec(section("fashion_mnist")) == DataSpec((28, 28, 1), 10)
    assert data_spec(section("cifar100")) == DataSpec((32, 32, 3), 100)
    for name in ("digits", "mnist", "cifar10"):
        source = make_source(section(name, prepared), "train")
        expected = DataSpec(source.image_shape, source.num_classes)
        assert data_spec(section(name)) == expected
        with pytest.raises(UserError, match=rf"latent needs colour images .*; {name} has"):
            data_spec(section(name, latent=True))
    assert data_spec(section("imagenet", image_size=64)) == DataSpec((64, 64, 3), 1000)
    latent = section("imagenet", image_size=64, latent=True)
    assert data_spec(latent) == DataSpec((8, 8, 4), 1000)
    assert data_spec(section("images", images)) == DataSpec((32, 32, 3), 3)
    assert data_spec(section("images", latents, latent=True)) == DataSpec((4, 4, 4), 3)
    with pytest.raises(UserError, match=r"sides 8·n; imagenet has 60x60x3"):
        data_spec(section("imagenet", image_size=60, latent=True))


def test_digits_are_the_stratified_split():
    train, test = DigitsSource("train"), DigitsSource("test")
    assert (len(train), len(test)) == (1347, 450)
    assert train.image_shape == (8, 8, 1) and train.num_classes == 10
    assert train.class_names == list("0123456789")
    images, labels = as_arrays(train)
    assert images.shape == (1347, 8, 8, 1) and images.dtype == np.uint8
    assert labels.dtype == np.int32
    # At v = 8, v·255/16 is 127.5, which is rounded to the even neighbour.
    assert np.unique(images).tolist() == [round(v * 255 / 16) for v in range(17)]
    whole = np.bincount(load_digits().target)
    np.testing.assert_allclose(np.bincount(test.labels), whole / 4, atol=1)
    np.testing.assert_array_equal(np.bincount(train.labels) + np.bincount(test.labels), whole)


def test_digits_splits_are_disjoint_and_complete():
    both = np.concatenate([as_arrays(DigitsSource(split))[0] for split in ("train", "test")])
    levels = load_digits().data
    found = sorted(map(bytes, both.reshape(-1, 64)))
    expected = sorted(map(bytes, np.rint(levels * 255 / 16).astype(np.uint8)))
    assert found == expected


def test_digits_record_and_unknown_split():
    source = DigitsSource("test")
    record = source[7]
    assert record["image"].shape == (8, 8, 1) and record["label"].dtype == np.int32
    assert record["label"] == source.labels[7]
    with pytest.raises(UserError, match="found 'validation'"):
        DigitsSource("validation")


def test_tfds_reads_what_was_written(prepared):
    source = make_source(SimpleNamespace(source="mnist", path=prepared), "train")
    assert len(source) == 40 and source.image_shape == (28, 28, 1)
    assert source.num_classes == 10 and source.class_names[9] == "9"
    numbers = []
    for i in range(40):
        record = source[i]
        assert record["image"].shape == (28, 28, 1) and record["image"].dtype == np.uint8
        number = int(record["image"][0, 0, 0])
        assert np.all(record["image"] == number)
        assert record["label"] == (3 * number) % 10 and record["label"].dtype == np.int32
        assert source.labels[i] == record["label"]
        numbers.append(number)
    assert sorted(numbers) == list(range(40)) and source.labels.dtype == np.int32


def test_tfds_colour_and_class_names(prepared):
    source = make_source(SimpleNamespace(source="cifar10", path=prepared), "train")
    assert source.class_names == CIFAR10 and source.num_classes == 10
    images, labels = as_arrays(source)
    assert images.shape == (3, 32, 32, 3)
    np.testing.assert_array_equal(labels, [[3, 0, 9][i] for i in images[:, 0, 0, 0]])


def test_tfds_source_travels_to_a_worker(prepared):
    source = TfdsSource("mnist", "test", prepared)
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy[1]["image"], source[1]["image"])
    np.testing.assert_array_equal(copy.labels, source.labels)


def test_label_out_of_range_is_refused(prepared):
    source = TfdsSource("cifar10", "test", prepared)
    with pytest.raises(
        UserError, match=r"cifar10 split 'test' holds the label -1; expected 0 to 9"
    ):
        _ = source.labels
    with pytest.raises(UserError, match="label -1"):
        as_arrays(source)


def test_missing_data_says_what_to_run(tmp_path):
    with pytest.raises(UserError) as caught:
        make_source(SimpleNamespace(source="mnist", path=str(tmp_path)), "train")
    command = f"tfds build mnist --file_format=array_record --data_dir={tmp_path}"
    assert command in str(caught.value) and "\n" not in str(caught.value)


def test_format_without_random_access_is_refused(tmp_path):
    labels = {"train": [0, 1]}
    shape = (28, 28, 1)
    write_tfds(
        tmp_path, "mnist", version="3.0.1", shape=shape, class_names=["a", "b"], labels=labels
    )
    info = tmp_path / "mnist" / "3.0.1" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(UserError, match="stored as tfrecord"):
        TfdsSource("mnist", "train", str(tmp_path))


def test_unknown_names_are_refused(prepared):
    with pytest.raises(UserError, match=r"no split 'validation'; it has .*train"):
        TfdsSource("mnist", "validation", prepared)
    with pytest.raises(UserError, match="no data set named 'no_such_thing'"):
        TfdsSource("no_such_thing", "train", prepared)
    with pytest.raises(UserError, match="cifar100, imagenet, images; found 'imagenot'"):
        make_source(SimpleNamespace(source="imagenot", path=None), "train")


def test_dispatch_of_the_digits():
    source = make_source(SimpleNamespace(source="digits", path=None), "test")
    assert isinstance(source, DigitsSource) and len(source) == 450
