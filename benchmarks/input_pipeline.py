"""Compares the input pipeline with a torch DataLoader, in images per second of CPU time.

    pip install torch==2.13.0 && python benchmarks/input_pipeline.py

Both read the same synthetic JPEG files of ImageNet's usual size, decode them, make the reference's
centre crop at 256 pixels, flip half of them and stack batches of 32, in this process on one core.
The CPU time of all threads of this process counts, so other programs do not disturb the result.
Without torch, its column is missing.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from drifting_jax.data import pipeline
from drifting_jax.data.folder import open_folder
from drifting_jax.data.images import ImageSource
from drifting_jax.data.transforms import Augmentation, center_crop

BATCH, SIZE = 32, 256
GENERATOR_IMAGES, ENCODER_IMAGES = 128, 8192  # per step, in configs/imagenet_pixel.py
_WARM_UP = 8  # batches, so that images read ahead before the clock starts do not count


def write_images(root: Path, count: int) -> None:
    """Writes JPEG files of 500x375 pixels, as most of ImageNet's, about 110 kB each."""
    rng = np.random.default_rng(0)
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        pixels = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), np.float32)
        noisy = np.clip(pixels + rng.normal(0, 12, pixels.shape), 0, 255).astype(np.uint8)
        (root / f"{i % 4}").mkdir(exist_ok=True)
        Image.fromarray(noisy).save(root / f"{i % 4}" / f"{i}.jpg", quality=92)


def ours(root: Path, decoder: str, batches: int) -> float:
    """Images per second of `pipeline.batches`."""
    source = ImageSource(open_folder(root, cache=root / ".cache"), SIZE, decoder=decoder)
    how = Augmentation(flip=True)
    with pipeline.batches(source, batch_size=BATCH, seed=0, augmentation=how) as found:
        for _ in range(_WARM_UP):
            next(found)
        started = time.process_time()
        for _ in range(batches):
            next(found)
        return BATCH * batches / (time.process_time() - started)


def torchs(root: Path, batches: int) -> float | None:
    """Images per second of a torch DataLoader that decodes, crops and flips with Pillow.

    None without torch.
    """
    try:
        import torch
        from torch.utils.data import DataLoader, Dataset
    except ImportError:
        return None
    torch.set_num_threads(1)

    class Images(Dataset):
        paths = sorted(root.glob("*/*.jpg"))

        def __len__(self):
            return len(self.paths)

        def __getitem__(self, index):
            with Image.open(self.paths[index]) as picture:
                pixels = center_crop(picture.convert("RGB"), SIZE)
            if torch.rand(()) < 0.5:
                pixels = pixels[:, ::-1]
            return torch.from_numpy(np.ascontiguousarray(pixels)), int(
                self.paths[index].parent.name
            )

    def endless(loader):
        while True:
            yield from loader

    found = endless(DataLoader(Images(), batch_size=BATCH, shuffle=True, drop_last=True))
    next(found)
    started = time.process_time()
    for _ in range(batches):
        next(found)
    return BATCH * batches / (time.process_time() - started)


def main() -> None:
    """Prints the median rate of each and the ratios to torch's."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=24)
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # this process on one core
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_images(root, 256)
        size = np.mean([path.stat().st_size for path in root.glob("*/*.jpg")]) / 1000
        print(f"500x375 JPEG files of {size:.0f} kB, centre crop {SIZE}, one core")
        rounds = []
        for _ in range(options.rounds):
            found = {name: ours(root, name, options.batches) for name in ("pillow", "opencv")}
            rate = torchs(root, options.batches)
            rounds.append(found | ({"torch": rate} if rate else {}))
    for name in rounds[0]:
        rates = [found[name] for found in rounds]
        line = f"{name:<8}{np.median(rates):8.1f} images/s"
        if "torch" in rounds[0]:
            ratios = [found[name] / found["torch"] for found in rounds]
            line += (
                f"   {np.median(ratios):5.2f} of torch's ({min(ratios):.2f} to {max(ratios):.2f})"
            )
        print(line)
    rate = np.median([found["pillow"] for found in rounds])
    print(
        f"a core with pillow feeds {rate / GENERATOR_IMAGES:.2f} steps/s of imagenet_pixel "
        f"({GENERATOR_IMAGES} new images each) or a step of its encoder ({ENCODER_IMAGES} images) "
        f"in {ENCODER_IMAGES / rate:.0f} s"
    )


if __name__ == "__main__":
    main()
