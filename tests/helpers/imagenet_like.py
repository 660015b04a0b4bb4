"""Writes a small data set like ImageNet: JPEG files of many sizes, some unusual, by class."""

import io

import numpy as np
from PIL import Image

CLASSES = ("n01440764", "n02099601", "n03126707")  # tench, golden retriever, crane


def picture(seed: int, width: int, height: int, *, mode: str = "RGB") -> Image.Image:
    """A smooth colourful image with some texture, similar to a photograph."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32)
    noisy = np.clip(smooth + rng.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8)
    return Image.fromarray(noisy).convert(mode)


def encoded(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def oddities() -> dict[str, bytes]:
    """Unusual files that real data sets hold: {name: bytes}."""
    rotated = Image.Exif()
    rotated[0x0112] = 6  # orientation
    whole = encoded(picture(90, 60, 70))
    return {
        "gray.JPEG": encoded(picture(91, 70, 52, mode="L")),
        "cmyk.JPEG": encoded(picture(92, 52, 70, mode="CMYK")),
        "rotated.JPEG": encoded(picture(93, 80, 50), exif=rotated),
        "png_in_disguise.JPEG": encoded(picture(94, 64, 50), "PNG"),
        "truncated.JPEG": whole[: len(whole) // 2],
    }


def write_imagenet_like(root, *, per_class: int = 14, splits=("train",)) -> None:
    """Writes <root>/<split>/<wnid>/*.JPEG, with `oddities` in the first class of "train"."""
    rng = np.random.default_rng(0)
    for split in splits:
        for label, wnid in enumerate(CLASSES):
            folder = root / split / wnid
            folder.mkdir(parents=True)
            for i in range(per_class):
                width, height = (int(x) for x in rng.integers(36, 150, 2))
                image = picture(100 * label + i, width, height)
                (folder / f"{wnid}_{i}.JPEG").write_bytes(encoded(image, quality=90))
            if split == "train" and label == 0:
                for name, data in oddities().items():
                    (folder / name).write_bytes(data)
