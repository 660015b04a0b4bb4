"""Sets of images: complete and in order from any index on, with damaged images marked."""

import zipfile

import imagenet_like
import numpy as np
import pytest

from drifting_jax.data import transforms
from drifting_jax.distributed import meshes
from drifting_jax.errors import UserError
from drifting_jax.evaluation.features.array_images import ArrayImages
from drifting_jax.evaluation.features.image_sets import balanced_labels, open_images, per_class

SIZE = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    imagenet_like.write_imagenet_like(root, per_class=5)
    return root


def collect(images, *, start=0, batch_size=8, devices=8):
    """Images and marks of all batches, without the padding."""
    mesh = meshes.make_mesh(devices)
    pixels, usable = [], []
    for batch in images.batches(mesh, start=start, batch_size=batch_size):
        assert batch.images.shape[0] == batch_size
        pixels.append(np.asarray(batch.images)[: len(batch.usable)])
        usable.append(batch.usable)
    return np.concatenate(pixels), np.concatenate(usable)


def test_a_folder_is_decoded_and_cropped_as_the_reference_does(folder):
    images = open_images(folder, size=SIZE)
    pixels, usable = collect(images)
    assert pixels.shape == (len(images), SIZE, SIZE, 3) and len(usable) == len(images) == 20
    damaged = [i for i in range(len(images)) if "truncated" in images.name(i)]
    assert list(np.flatnonzero(~usable)) == damaged and not pixels[damaged].any()
    path = next((folder / "train").glob("*/*_3.JPEG"))
    at = next(i for i in range(len(images)) if path.name in images.name(i))
    np.testing.assert_array_equal(pixels[at], transforms.load(path.read_bytes(), SIZE))
    np.testing.assert_array_equal(images.pick([at, 0])[0], pixels[at])
    assert images.class_names == ["tench", "golden retriever", "crane"]


@pytest.mark.parametrize(("start", "batch_size", "devices"), [(0, 20, 4), (7, 8, 8), (19, 3, 1)])
def test_batches_go_on_from_anywhere(folder, start, batch_size, devices):
    images = open_images(folder, size=SIZE)
    whole, marks = collect(images)
    pixels, usable = collect(images, start=start, batch_size=batch_size, devices=devices)
    np.testing.assert_array_equal(pixels, whole[start:])
    np.testing.assert_array_equal(usable, marks[start:])


def test_another_file_makes_another_digest(tmp_path):
    imagenet_like.write_imagenet_like(tmp_path, per_class=2)
    before = open_images(tmp_path, size=SIZE).digest
    assert open_images(tmp_path, size=SIZE).digest == before
    assert open_images(tmp_path, size=SIZE + 1).digest != before
    path = next(tmp_path.glob("train/*/*_1.JPEG"))
    path.write_bytes(imagenet_like.encoded(imagenet_like.picture(5, 40, 40)))
    assert open_images(tmp_path, size=SIZE).digest != before


def test_images_as_they_are_have_one_size(tmp_path):
    for i, side in enumerate((9, 9, 12)):
        picture = imagenet_like.picture(i, side, 9)
        picture.save(tmp_path / f"{i}.png")
    images = open_images(tmp_path)
    assert images.labels is None
    np.testing.assert_array_equal(images.pick([1])[0], np.asarray(imagenet_like.picture(1, 9, 9)))
    with pytest.raises(UserError, match=r"2.png of .* has 9x12 pixels, the first image 9x9: say"):
        collect(images)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_are_streamed(tmp_path, save):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (21, 5, 6, 3), dtype=np.uint8)
    labels = rng.integers(0, 4, 21)
    save(tmp_path / "samples.npz", arr_0=pixels, arr_1=labels)
    images = open_images(tmp_path / "samples.npz")
    found, usable = collect(images)
    np.testing.assert_array_equal(found, pixels)
    assert usable.all()
    np.testing.assert_array_equal(collect(images, start=9, batch_size=16)[0], pixels[9:])
    np.testing.assert_array_equal(images.pick([20, 3]), pixels[[20, 3]])
    np.testing.assert_array_equal(images.labels, labels)


def test_files_without_images_give_one_line(tmp_path):
    path = tmp_path / "samples.npz"
    np.savez(path, arr_0=np.zeros((3, 4, 4, 3), np.float32))
    with pytest.raises(UserError, match=r"must be images \[n, h, w, 1 or 3\] of uint8"):
        ArrayImages(path)
    np.savez(path, other=np.zeros(3))
    with pytest.raises(UserError, match="holds no array called arr_0"):
        ArrayImages(path)
    np.savez(path, arr_0=np.zeros((3, 4, 4, 3), np.uint8), arr_1=np.zeros(2, int))
    with pytest.raises(UserError, match="arr_1 must be 3 labels"):
        ArrayImages(path)
    np.savez(path, arr_0=np.zeros((0, 4, 4, 3), np.uint8))
    with pytest.raises(UserError, match="holds no image"):
        ArrayImages(path)
    path.write_bytes(b"no zip")
    with pytest.raises(UserError, match=r"is no \.npz file that can be read"):
        ArrayImages(path)
    with pytest.raises(UserError, match="does not exist"):
        open_images(tmp_path / "nothing")


def test_a_damaged_array_says_where(tmp_path):
    path = tmp_path / "samples.npz"
    pixels = np.random.default_rng(0).integers(0, 256, (50, 16, 16, 3), dtype=np.uint8)
    np.savez_compressed(path, arr_0=pixels)
    with zipfile.ZipFile(path) as file:
        info = file.getinfo("arr_0.npy")
    data = bytearray(path.read_bytes())
    at = info.header_offset + info.compress_size // 2
    data[at : at + 64] = bytes(64)
    path.write_bytes(data)
    with pytest.raises(UserError, match="is damaged at image"):
        collect(ArrayImages(path))


def test_labels_are_balanced():
    labels, indices = balanced_labels(7, 3)
    np.testing.assert_array_equal(labels, [0, 0, 0, 1, 1, 2, 2])
    np.testing.assert_array_equal(indices, [0, 1, 2, 0, 1, 0, 1])
    assert per_class(labels, [0, 2], 1) == [0, 5]
    assert per_class(None, [0], 4) == [0, 1, 2, 3]
