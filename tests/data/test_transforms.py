"""Crops against the reference's pixels, random boxes, and damaged and unusual files."""

import io
from pathlib import Path

import numpy as np
import pytest
from imagenet_like import encoded, oddities, picture
from PIL import Image

from drifting_jax.data import transforms
from drifting_jax.data.transforms import Augmentation, UnreadableImage, load, random_resized_box

CROPS = np.load(Path(__file__).parents[1] / "fixtures" / "torch" / "image_crop" / "io.npz")
CASES = [name for name in CROPS.files if name.rpartition("/")[2].startswith("crop")]


@pytest.mark.parametrize("case", CASES)
def test_centre_crop_equals_the_reference_pixel_for_pixel(case):
    name, _, size = case.partition("/crop")
    np.testing.assert_array_equal(load(CROPS[f"{name}/file"].tobytes(), int(size)), CROPS[case])


@pytest.mark.parametrize("case", [n for n in CROPS.files if n.endswith("decoded_rgb")])
def test_decoding_ignores_rotation_and_drops_transparency(case):
    data = CROPS[case.replace("decoded_rgb", "file")].tobytes()
    np.testing.assert_array_equal(np.asarray(transforms.decode(data)), CROPS[case])


def test_opencv_reads_photographs_nearly_as_pillow():
    data = encoded(picture(1, 200, 150), quality=95)
    exact, fast = (load(data, 64, decoder=d).astype(int) for d in transforms.DECODERS)
    assert 0 < np.abs(exact - fast).mean() < 3


@pytest.mark.parametrize("name", ["cmyk.JPEG", "png_in_disguise.JPEG"])
def test_opencv_leaves_to_pillow_what_it_would_read_otherwise(name):
    data = oddities()[name]
    np.testing.assert_array_equal(load(data, 32), load(data, 32, decoder="opencv"))


def test_opencv_ignores_rotation():
    data = oddities()["rotated.JPEG"]
    exact, fast = (load(data, 32, decoder=d).astype(int) for d in transforms.DECODERS)
    assert np.abs(exact - fast).mean() < 6


@pytest.mark.parametrize("decoder", transforms.DECODERS)
@pytest.mark.parametrize(
    "data", [b"", b"\xff\xd8\xff\xd9", b"GIF89a", oddities()["truncated.JPEG"]]
)
def test_damaged_files_are_unreadable(data, decoder):
    with pytest.raises(UnreadableImage):
        load(data, 32, decoder=decoder)


def test_images_too_large_to_hold_are_unreadable():
    thin = as_file(Image.new("L", (1, 5000)), "PNG")
    with pytest.raises(UnreadableImage, match="too thin: 1x5000"):
        load(thin, 256)
    data = bytearray(encoded(picture(1, 64, 48), quality=90))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = b"\xff\x00\xff\x00"
    with pytest.raises(UnreadableImage):
        load(bytes(data), 32, decoder="opencv")


def as_file(picture, kind):
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()


def test_boxes_lie_inside_and_cover_the_area_asked_for():
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(500):
        top, left, height, width = random_resized_box(rng, 90, 120, 0.3)
        assert 0 <= top <= 90 - height and 0 <= left <= 120 - width
        assert 0.72 < width / height < 1.37
        shares.append(height * width / (90 * 120))
    assert min(shares) > 0.28 and max(shares) > 0.9 and 0.5 < np.mean(shares) < 0.7


@pytest.mark.parametrize("sides", [(10, 400), (400, 10), (1, 1)])
def test_a_box_of_a_narrow_image_still_fits(sides):
    for seed in range(20):
        top, left, height, width = random_resized_box(np.random.default_rng(seed), *sides, 0.9)
        assert 0 < height <= sides[0] - top and 0 < width <= sides[1] - left


@pytest.mark.parametrize("decoder", transforms.DECODERS)
def test_augmentation_depends_on_its_key_alone(decoder):
    data = encoded(picture(2, 90, 70))
    how = Augmentation(crop="random_resized", flip=True)

    def draw(seed):
        rng = np.random.default_rng(seed)
        return load(data, 24, augmentation=how, rng=rng, decoder=decoder)

    assert draw(0).shape == (24, 24, 3) and draw(0).dtype == np.uint8
    np.testing.assert_array_equal(draw(0), draw(0))
    assert not np.array_equal(draw(0), draw(1))


def test_half_of_the_images_are_mirrored():
    data = encoded(picture(3, 40, 40), "PNG")
    plain = load(data, 40)
    how = Augmentation(flip=True)
    drawn = [load(data, 40, augmentation=how, rng=np.random.default_rng(i)) for i in range(60)]
    mirrored = sum(np.array_equal(x, plain[:, ::-1]) for x in drawn)
    assert mirrored + sum(np.array_equal(x, plain) for x in drawn) == 60 and 18 < mirrored < 42


@pytest.mark.parametrize("channels", [1, 3])
def test_small_images_are_augmented_too(channels):
    image = np.asarray(picture(4, 28, 28), np.uint8)[:, :, :channels]
    plain = transforms.augment(image, Augmentation(), np.random.default_rng(0))
    np.testing.assert_array_equal(plain, image)
    how = Augmentation(crop="random_resized", min_area=0.3)
    cut = [transforms.augment(image, how, np.random.default_rng(i)) for i in range(5)]
    assert {x.shape for x in cut} == {image.shape}
    assert all(x.dtype == np.uint8 and not np.array_equal(x, image) for x in cut)


def test_random_changes_need_a_source_of_randomness():
    data = encoded(picture(2, 40, 40))
    for how in (Augmentation(flip=True), Augmentation(crop="random_resized")):
        with pytest.raises(ValueError, match="draws from rng; found None"):
            load(data, 24, augmentation=how)
