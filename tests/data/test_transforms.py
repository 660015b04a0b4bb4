"""Crops against the reference's pixels, random boxes, and damaged and unusual files."""

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from imagenet_like import encoded, oddities, picture
from PIL import Image

from drifting_jax.data import transforms
from drifting_jax.data.transforms import Augmentation, UnreadableImage, load, random_resized_box

CROPS = np.load(Path(__file__).parents[1] / "fixtures" / "torch" / "image_crop" / "io.npz")
# The reference makes 16-bit files white; we scale them.
READ_ALIKE = [name for name in CROPS.files if not name.startswith("i16_png")]
CASES = [name for name in READ_ALIKE if name.rpartition("/")[2].startswith("crop")]


@pytest.mark.parametrize("case", CASES)
def test_centre_crop_equals_the_reference_pixel_for_pixel(case):
    name, _, size = case.partition("/crop")
    np.testing.assert_array_equal(load(CROPS[f"{name}/file"].tobytes(), int(size)), CROPS[case])


@pytest.mark.parametrize("case", [n for n in READ_ALIKE if n.endswith("decoded_rgb")])
def test_decoding_ignores_rotation_and_drops_transparency(case):
    data = CROPS[case.replace("decoded_rgb", "file")].tobytes()
    np.testing.assert_array_equal(np.asarray(transforms.decode(data)), CROPS[case])


def test_sixteen_bits_are_scaled_to_eight():
    data = CROPS["i16_png/file"].tobytes()
    values = np.asarray(Image.open(io.BytesIO(data)))
    assert values.dtype == np.uint16 and values.max() > 60000
    eight = np.uint8(values.astype(int) // 256)
    np.testing.assert_array_equal(np.asarray(transforms.decode(data)), np.stack([eight] * 3, -1))
    as_eight = as_file(Image.fromarray(eight), "PNG")
    for decoder in transforms.DECODERS:
        np.testing.assert_array_equal(load(data, 64, decoder=decoder), load(as_eight, 64))


RAMP = np.tile(np.linspace(1000, 65535, 48), (40, 1)).round()


@pytest.mark.parametrize(
    "kind, dtype",
    [("PNG", "<u2"), ("TIFF", "<u2"), ("TIFF", ">u2"), ("TIFF", "<i4"), ("PPM", "<u2"),
     ("JPEG2000", "<u2")],
)  # fmt: skip
def test_integers_of_many_bits_in_any_format(kind, dtype):
    pixels = np.asarray(transforms.decode(encoded(Image.fromarray(RAMP.astype(dtype)), kind)))
    np.testing.assert_array_equal(pixels, np.repeat(RAMP[..., None] // 256, 3, -1))


def test_colours_of_sixteen_bits_are_scaled_alike():
    import cv2

    colours = np.stack([RAMP, RAMP[:, ::-1], RAMP], -1).astype(np.uint16)
    data = cv2.imencode(".png", colours[..., ::-1])[1].tobytes()
    np.testing.assert_array_equal(np.asarray(transforms.decode(data)), colours // 256)


def test_twelve_bits_of_a_tiff():
    values = np.arange(0, 4096, 64, dtype=np.uint16).reshape(8, 8)
    packed = np.stack([values[:, ::2] >> 4, (values[:, ::2] & 15) << 4 | values[:, 1::2] >> 8,
                       values[:, 1::2] & 255], -1).astype(np.uint8).tobytes()  # fmt: skip
    tags = [(256, 3, 8), (257, 3, 8), (258, 3, 12), (259, 3, 1), (262, 3, 1), (273, 4, 8),
            (277, 3, 1), (278, 3, 8), (279, 4, len(packed))]  # fmt: skip
    directory = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    header = b"II*\0" + struct.pack("<I", 8 + len(packed))
    data = header + packed + struct.pack("<H", len(tags)) + directory + bytes(4)
    np.testing.assert_array_equal(np.asarray(transforms.decode(data))[..., 0], values >> 4)


@pytest.mark.parametrize(
    "values, told",
    [
        ((RAMP / 65535).astype(np.float32), "floating-point numbers, which have no fixed range"),
        (RAMP.astype(np.float32), "save it with 8 or 16 bits"),
        (RAMP.astype(np.int32) - 2000, "integers from -1000 to 63535; expected 0..65535"),
        (RAMP.astype(np.int32) * 9, "integers from 9000 to 589815; expected 0..65535"),
        ((RAMP // 300).astype(np.uint16), "16 bits, but values up to 218 only: the image would be"),
    ],
)
def test_pixels_without_a_known_range_are_unreadable(values, told):
    with pytest.raises(UnreadableImage, match=told):
        transforms.decode(encoded(Image.fromarray(values), "TIFF"))


def test_a_black_image_of_sixteen_bits_is_black():
    data = encoded(Image.fromarray(np.zeros((4, 4), np.uint16)), "PNG")
    assert not np.asarray(transforms.decode(data)).any()


def test_the_first_of_several_pictures_is_read():
    red, blue = (Image.new("RGB", (8, 8), color) for color in ("red", "blue"))
    for kind in ("GIF", "TIFF", "PNG", "WEBP"):
        data = encoded(red, kind, save_all=True, append_images=[blue])
        pixels = np.asarray(transforms.decode(data)).astype(int)
        assert np.abs(pixels - [255, 0, 0]).max() < 10, kind


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
