"""Checks that memory does not grow while workers read 50,000 samples. Run by hand:

    python tests/soak_data.py

Prints the memory of this process and its workers every 5,000 samples. Fails if it grows by more
than a tenth after the first 10,000 samples, or if a process or shared memory is left.
"""

import multiprocessing
import os
import sys
import tempfile
from pathlib import Path

import psutil
from absl import app

sys.path.insert(0, str(Path(__file__).parent / "helpers"))

from imagenet_like import write_imagenet_like

from drifting_jax.data import pipeline
from drifting_jax.data.folder import open_folder
from drifting_jax.data.images import ImageSource
from drifting_jax.data.transforms import Augmentation

BATCH, SAMPLES = 100, 50_000


def resident() -> float:
    """MiB of memory that only this process or one of its children uses."""
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sum(p.memory_full_info().uss for p in processes) / 2**20


def main(_) -> None:
    """Reads the samples, prints the memory and checks it."""
    before = set(os.listdir("/dev/shm"))
    with tempfile.TemporaryDirectory() as folder:
        write_imagenet_like(Path(folder))
        source = ImageSource(open_folder(Path(folder) / "train", cache=Path(folder)), 64)
        how = Augmentation(crop="random_resized", flip=True)
        found = []
        with pipeline.batches(
            source, batch_size=BATCH, seed=0, augmentation=how, num_workers=2
        ) as batches:
            for taken in range(BATCH, SAMPLES + 1, BATCH):
                next(batches)
                if taken % 5_000 == 0:
                    found.append(resident())
                    print(f"{taken} samples, {found[-1]:.0f} MiB", flush=True)
    left = multiprocessing.active_children(), set(os.listdir("/dev/shm")) - before
    print(f"processes left {left[0]}, shared memory left {left[1]}")
    if max(found[2:]) > 1.1 * found[1] or left[0] or left[1]:
        sys.exit("memory grew, or something was left")


if __name__ == "__main__":
    app.run(main)
