"""MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100 in the formats in which people have them."""

import gzip
import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from small_files import (
    cifar_files,
    idx_bytes,
    mnist_arrays,
    python2_pickle,
    write_archive,
    write_folder,
    write_idx,
)

from drifting_jax.data.cifar import CIFAR_DATASETS
from drifting_jax.data.sources import as_arrays, make_source
from drifting_jax.errors import UserError

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
FOLDERS = {
    ("cifar10", False): "cifar-10-batches-py",
    ("cifar10", True): "cifar-10-batches-bin",
    ("cifar100", False): "cifar-100-python",
    ("cifar100", True): "cifar-100-binary",
}
ARCHIVES = {
    ("cifar10", False): "cifar-10-python.tar.gz",
    ("cifar10", True): "cifar-10-binary.tar.gz",
    ("cifar100", False): "cifar-100-python.tar.gz",
    ("cifar100", True): "cifar-100-binary.tar.gz",
}


def opened(source, path, split="train"):
    return make_source(SimpleNamespace(source=source, path=str(path)), split)


def assert_holds(source, images, labels):
    found = as_arrays(source)
    assert found[0].dtype == np.uint8 and found[1].dtype == np.int32
    np.testing.assert_array_equal(found[0], images.reshape(len(images), *source.image_shape))
    np.testing.assert_array_equal(found[1], labels)


@pytest.mark.parametrize("dataset", ["mnist", "fashion_mnist"])
@pytest.mark.parametrize("packed", [True, False])
def test_idx_files_are_read_in_their_order(tmp_path, dataset, packed):
    expected = write_idx(tmp_path / "data", packed=packed)
    for split, (images, labels) in expected.items():
        source = opened(dataset, tmp_path / "data", split)
        assert_holds(source, images, labels)
        assert source.image_shape == (28, 28, 1) and source.num_classes == 10
        assert source.facts.format == "idx" and source.facts.where == tmp_path / "data"
        assert source.class_names[9] == {"mnist": "9", "fashion_mnist": "Ankle boot"}[dataset]


@pytest.mark.parametrize(
    ("dataset", "inner"), [("mnist", "MNIST/raw"), ("fashion_mnist", "FashionMNIST/raw")]
)
def test_torchvisions_folders_of_mnist_are_found(tmp_path, dataset, inner):
    expected = write_idx(tmp_path / inner, packed=False, dotted=dataset == "mnist")
    for path in (tmp_path, (tmp_path / inner).parent, tmp_path / inner):
        assert_holds(opened(dataset, path), *expected["train"])


@pytest.mark.parametrize(("dataset", "binary"), FOLDERS)
def test_cifar_is_read_in_the_order_of_its_files(tmp_path, dataset, binary):
    files, expected = cifar_files(dataset, binary=binary)
    inner = FOLDERS[dataset, binary]
    folder = write_folder(tmp_path / "unpacked" / inner, files)
    (tmp_path / "packed").mkdir()
    archive = write_archive(tmp_path / "packed" / ARCHIVES[dataset, binary], files, inner=inner)
    places = [folder, folder.parent, archive, archive.parent]
    prints = set()
    for path in places:
        for split, (images, labels) in expected.items():
            source = opened(dataset, path, split)
            assert_holds(source, images, labels)
            assert source.facts.where == (folder if path in places[:2] else archive)
            assert (
                source.num_classes == len(source.class_names) == {"cifar10": 10}.get(dataset, 100)
            )
            if split == "train":
                prints.add(source.fingerprint)
    assert len(prints) == 1 and prints != {""}
    assert source.facts.format == ("cifar binary" if binary else "cifar python")
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy[2]["image"], source[2]["image"])


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_both_versions_of_cifar_are_the_same_data(tmp_path, dataset):
    prints = set()
    for binary in (False, True):
        files, _ = cifar_files(dataset, binary=binary)
        folder = write_folder(tmp_path / FOLDERS[dataset, binary], files)
        prints.add(opened(dataset, folder).fingerprint)
    assert len(prints) == 1


def test_class_names():
    ten, hundred = (CIFAR_DATASETS[name].class_names for name in ("cifar10", "cifar100"))
    assert len(set(ten)) == 10 and ten[0] == "airplane" and ten[9] == "truck"
    assert len(set(hundred)) == 100 and list(hundred) == sorted(hundred)
    assert hundred[0] == "apple" and hundred[19] == "cattle" and hundred[99] == "worm"


def damage_idx(folder, name, data):
    write_idx(folder, packed=False)
    (folder / name).write_bytes(data)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        (
            "train-images-idx3-ubyte",
            idx_bytes(mnist_arrays(30)[0])[:-5],
            r"expected 23520 bytes after the header of .*\[30, 28, 28\]; found 23515: .* truncated",
        ),
        (
            "train-images-idx3-ubyte",
            b"<html>404</html>",
            r"expected an IDX file .* found b'<html>404",
        ),
        (
            "train-images-idx3-ubyte",
            gzip.compress(idx_bytes(mnist_arrays(30)[0]))[:-50],
            r"train-images-idx3-ubyte is no whole gzip file: ",
        ),
        ("train-images-idx3-ubyte", b"\0\0\x0d\x03", r"expected an IDX file of unsigned bytes"),
        (
            "train-images-idx3-ubyte",
            idx_bytes(np.zeros((30, 32, 32))),
            r"expected images \[n, 28, 28\] .* found \[30, 32, 32\]",
        ),
        ("train-labels-idx1-ubyte", idx_bytes(np.zeros(29)), r"expected 30 labels .* found \[29\]"),
        ("train-labels-idx1-ubyte", idx_bytes(np.arange(30)), r"labels 0 to 9 in .*, found 29"),
        (
            "train-labels-idx1-ubyte",
            idx_bytes(np.array([9, 0, 0, 3, 0, 2, 7, 2, 5, 5] * 3)),
            r"holds Fashion-MNIST, not MNIST: .*--config\.data\.source=fashion_mnist",
        ),
    ],
)
def test_damaged_idx_files_are_one_line(tmp_path, name, data, message):
    damage_idx(tmp_path, name, data)
    with pytest.raises(UserError, match=message) as caught:
        opened("mnist", tmp_path)
    assert "\n" not in str(caught.value)
    opened("mnist", tmp_path, "test")  # whose files are whole


def test_a_missing_idx_file_is_named(tmp_path):
    write_idx(tmp_path, packed=True)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(UserError, match=r"without t10k-labels-idx1-ubyte or t10k-labels-.*gz"):
        opened("mnist", tmp_path, "test")


def changed(files, name, data):
    return {**files, name: data(files[name])}


@pytest.mark.parametrize(
    ("binary", "change", "message"),
    [
        (True, lambda f: changed(f, "data_batch_2.bin", lambda d: d[:-1]),
         r"multiple of 3073 bytes in data_batch_2\.bin .*, found 18437: it is truncated"),
        (True, lambda f: changed(f, "data_batch_2.bin", lambda d: d[:-3073]),
         r"expected equally many images in data_batch_1\.bin, .*; found 6, 5, 6, 6, 6"),
        (True, lambda f: changed(f, "data_batch_3.bin", lambda d: b"\x0b" + d[1:]),
         r"expected labels 0 to 9 in data_batch_3\.bin of .*, found [01] to 11"),
        (True, lambda f: changed(f, "data_batch_1.bin", lambda d: b""), r"found 0"),
        (False, lambda f: changed(f, "data_batch_4", lambda d: d[:-100]),
         r"data_batch_4 is damaged: its pickle cannot be read"),
        (False, lambda f: changed(f, "data_batch_4", lambda d: b"<html>"),
         r"data_batch_4 is damaged"),
        (False, lambda f: changed(f, "data_batch_4", lambda d: pickle.dumps({"a": 1})),
         r"expected 'data' and 'labels' in data_batch_4 of .*, found 'a'"),
        (False, lambda f: changed(f, "data_batch_4", lambda d: python2_pickle(
            {"data": np.zeros((3, 3072), np.uint8), "labels": [1, 2]})),
         r"expected 'data' \[2, 3072\] uint8 in data_batch_4 .*; found \[3, 3072\] uint8"),
        (False, lambda f: changed(f, "data_batch_4", lambda d: b"cos\nsystem\n(S'true'\ntR."),
         r"data_batch_4 asks for 'os\.system', which arrays do not need and nothing here runs"),
        (False, lambda f: {k: v for k, v in f.items() if k != "data_batch_5"},
         r"expected data_batch_1, .*; data_batch_5 is missing"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("packed", [True, False])
def test_damaged_cifar_files_are_one_line(tmp_path, binary, change, message, packed):
    files, _ = cifar_files("cifar10", binary=binary)
    inner = FOLDERS["cifar10", binary]
    if packed:
        write_archive(tmp_path / ARCHIVES["cifar10", binary], change(files), inner=inner)
    else:
        write_folder(tmp_path / inner, change(files))
    with pytest.raises(UserError, match=message) as caught:
        opened("cifar10", tmp_path)
    assert "\n" not in str(caught.value)
    opened("cifar10", tmp_path, "test")


@pytest.mark.parametrize("data", [b"<html>404</html>", b"", None])
def test_a_damaged_archive_is_one_line(tmp_path, data):
    files, _ = cifar_files("cifar100", binary=False, per_file=20)
    path = write_archive(tmp_path / "cifar-100-python.tar.gz", files, inner="cifar-100-python")
    path.write_bytes(path.read_bytes()[:20000] if data is None else data)
    with pytest.raises(UserError, match=r"tar\.gz is truncated or no tar archive \(.*download it"):
        opened("cifar100", tmp_path)


def test_a_folder_without_the_data_set_says_what_was_expected_and_found(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError) as caught:
        opened("cifar10", tmp_path)
    message = str(caught.value)
    assert f"no cifar10 in {tmp_path}, found notes.txt; expected a folder with " in message
    assert "cifar-10-batches-py/" in message and "cifar-10-binary.tar.gz" in message
    assert f"tfds build cifar10 --file_format=array_record --data_dir={tmp_path}" in message
    assert "\n" not in message
    with pytest.raises(
        UserError, match=r"config\.data\.path is empty; expected a folder with train-"
    ):
        opened("fashion_mnist", "")
    with pytest.raises(UserError, match=r"nowhere does not exist; expected cifar-100-python/"):
        opened("cifar100", tmp_path / "nowhere")


@pytest.mark.skipif(not DEBIAN.is_dir(), reason=f"needs Debian's dataset-fashion-mnist in {DEBIAN}")
def test_the_real_fashion_mnist():
    train, test = (opened("fashion_mnist", DEBIAN, split) for split in ("train", "test"))
    for source, prefix, count in ((train, "train", 6000), (test, "t10k", 1000)):
        np.testing.assert_array_equal(np.bincount(source.labels), count)
        raw = gzip.decompress((DEBIAN / f"{prefix}-images-idx3-ubyte.gz").read_bytes())[16:]
        last = np.frombuffer(raw[-784:], np.uint8).reshape(28, 28, 1)
        np.testing.assert_array_equal(source[len(source) - 1]["image"], last)
    assert train.class_names[train.labels[0]] == "Ankle boot"
    with pytest.raises(UserError, match="holds Fashion-MNIST, not MNIST"):
        opened("mnist", DEBIAN)
