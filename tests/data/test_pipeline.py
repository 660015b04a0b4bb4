"""The order of batches, through processes, workers, chunks and resumes."""

import hashlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from absl import flags

from drifting_jax.data.digits import DigitsSource
from drifting_jax.data.in_memory import ArraySource
from drifting_jax.data.pipeline import batches
from drifting_jax.data.points import PointsSource
from drifting_jax.data.transforms import Augmentation

ROOT = Path(__file__).parents[2]
FLIP = Augmentation(flip=True)


def numbered(size):
    """Record i has the label i, an image whose left column is i and whose right column is 255."""
    images = np.full((size, 1, 2, 1), 255, np.uint8)
    images[:, 0, 0, 0] = np.arange(size) % 251
    return ArraySource(images, np.arange(size), [str(i) for i in range(size)])


def take(source, count, **options):
    with batches(source, **options) as iterator:
        return [next(iterator) for _ in range(count)]


def labels_of(taken):
    return np.concatenate([batch["label"] for batch in taken])


def test_each_pass_holds_every_record_once_in_a_new_order():
    labels = labels_of(take(numbered(200), 20, batch_size=40, seed=3))
    passes = labels.reshape(4, 200)
    for one in passes:
        np.testing.assert_array_equal(np.sort(one), np.arange(200))
    assert len({tuple(one) for one in passes}) == 4
    assert not np.array_equal(passes[0], np.arange(200))


def test_batches_straddle_passes_and_may_exceed_the_source():
    labels = labels_of(take(numbered(200), 3, batch_size=500, seed=0))
    counts = np.bincount(labels[:1400], minlength=200)
    np.testing.assert_array_equal(counts, 7)


def test_shapes_and_dtypes():
    (batch,) = take(numbered(200), 1, batch_size=8, seed=0)
    assert batch["image"].shape == (8, 1, 2, 1) and batch["image"].dtype == np.uint8
    assert batch["label"].shape == (8,) and batch["label"].dtype == np.int32
    np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["label"] % 251)
    (batch,) = take(PointsSource("two_modes", 100, 0), 1, batch_size=8, seed=0)
    assert batch["image"].shape == (8, 2) and batch["image"].dtype == np.float32


def test_seed_decides_the_order():
    one, same, other = (
        labels_of(take(numbered(200), 3, batch_size=16, seed=seed)) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_the_order_is_that_of_earlier_versions():
    """The literals are those of the first version: its runs resume with the same batches."""

    def digest(taken, *names):
        found = hashlib.sha256()
        for batch in taken:
            for name in names:
                found.update(batch[name].tobytes())
        return found.hexdigest()[:16]

    digits = take(DigitsSource(), 340, batch_size=8, seed=0, augmentation=FLIP)
    assert digits[0]["index"].tolist() == [1203, 1318, 706, 141, 935, 215, 144, 766]
    assert digits[339]["index"].tolist() == [1007, 29, 120, 96, 1116, 866, 901, 703]
    assert digest(digits, "index", "image", "label") == "1f0c9524ba4e58cb"
    points = take(PointsSource("two_moons", 50, 7), 30, batch_size=4, seed=3)
    assert digest(points, "index", "image") == "395744f0e4b60a29"


@pytest.mark.parametrize("process_count", [2, 4])
def test_processes_share_the_batches_of_one(process_count):
    options = {"batch_size": 24, "seed": 5, "augmentation": FLIP, "start": 3}
    whole = take(numbered(200), 12, **options)
    parts = [
        take(numbered(200), 12, process_index=i, process_count=process_count, **options)
        for i in range(process_count)
    ]
    for step, batch in enumerate(whole):
        for name in batch:
            joined = np.concatenate([part[step][name] for part in parts])
            np.testing.assert_array_equal(joined, batch[name])


@pytest.mark.parametrize("process_count", [1, 2])
def test_batches_are_read_in_chunks_of_bounded_size(process_count):
    options = {"batch_size": 24, "seed": 5, "augmentation": FLIP, "start": 3}
    options |= {"process_count": process_count, "process_index": process_count - 1}
    whole = take(numbered(200), 6, **options)
    # A record has two bytes: 10 records fit, 8 (or 6) divide the batch.
    with batches(numbered(200), chunk_bytes=20, **options) as found:
        assert found.chunks_per_batch == {1: 3, 2: 2}[process_count]
        for expected in whole:
            batch = next(found)
            for name in expected:
                np.testing.assert_array_equal(batch[name], expected[name])


@pytest.mark.parametrize("start", [1, 17])
def test_resume_goes_on_exactly(start):
    options = {"batch_size": 24, "seed": 5, "augmentation": FLIP}
    whole = take(numbered(200), start + 4, **options)[start:]
    resumed = take(numbered(200), 4, start=start, **options)
    for expected, found in zip(whole, resumed, strict=True):
        np.testing.assert_array_equal(found["label"], expected["label"])
        np.testing.assert_array_equal(found["image"], expected["image"])


def test_flips_mirror_half_of_the_images():
    plain = take(numbered(200), 5, batch_size=200, seed=0)
    flipped = take(numbered(200), 5, batch_size=200, seed=0, augmentation=FLIP)
    np.testing.assert_array_equal(labels_of(flipped), labels_of(plain))
    a = np.concatenate([batch["image"] for batch in plain])
    b = np.concatenate([batch["image"] for batch in flipped])
    same = (a == b).all(axis=(1, 2, 3))
    mirrored = (a[:, :, ::-1] == b).all(axis=(1, 2, 3))
    assert np.all(same | mirrored) and 0.4 < mirrored.mean() < 0.6
    # Each pass decides anew whether a record is mirrored.
    by_record = np.stack(
        [mirrored[np.argsort(labels_of(plain)[i * 200 :][:200]) + i * 200] for i in range(5)]
    )
    assert 0.85 < np.mean(by_record.any(axis=0) & ~by_record.all(axis=0)) <= 1.0


def test_workers_keep_the_order_and_stop_on_close():
    flags.FLAGS.mark_as_parsed()
    options = {"batch_size": 32, "seed": 1, "augmentation": FLIP, "start": 2}
    expected = take(DigitsSource(), 4, **options)
    before = set(multiprocessing.active_children())
    iterator = batches(DigitsSource(), num_workers=2, **options)
    found = [next(iterator) for _ in range(2)]  # one batch of each worker, so both have started
    workers = set(multiprocessing.active_children()) - before
    assert len(workers) == 2
    for worker in workers:
        os.kill(worker.pid, signal.SIGINT)  # as a terminal does; workers ignore it
    found += [next(iterator) for _ in range(2)]
    iterator.close()
    for worker in workers:
        worker.join(timeout=10)
        assert not worker.is_alive()
    for a, b in zip(expected, found, strict=True):
        assert type(b["image"]) is np.ndarray  # a copy, not the worker's memory
        np.testing.assert_array_equal(a["image"], b["image"])
        np.testing.assert_array_equal(a["label"], b["label"])


_ORPHANS = """
import multiprocessing, sys, time
from absl import flags
from drifting_jax.data.digits import DigitsSource
from drifting_jax.data.pipeline import batches

if __name__ == "__main__":
    flags.FLAGS.mark_as_parsed()
    iterator = batches(DigitsSource(), batch_size=8, seed=0, num_workers=2)
    for _ in range(4):
        next(iterator)
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    time.sleep(60)
"""


def test_workers_end_with_a_process_that_is_killed(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(_ORPHANS)
    shared = set(os.listdir("/dev/shm"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        workers = [int(word) for word in process.stdout.readline().split()]
        assert len(workers) == 2
        process.kill()
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline, "workers outlive the process that they read for"
        time.sleep(0.1)
    left = set(os.listdir("/dev/shm")) - shared  # later ones belong to other programs
    while left & set(os.listdir("/dev/shm")):
        assert time.monotonic() < deadline, "shared memory stays behind"
        time.sleep(0.1)


def test_closing_ends_the_iterator():
    iterator = batches(numbered(200), batch_size=8, seed=0)
    next(iterator)
    iterator.close()
    iterator.close()
    with pytest.raises(ValueError, match="closed"):
        next(iterator)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 9, "process_count": 2}, "multiple of the 2 processes, found 9"),
        ({"batch_size": 0}, "found 0"),
        ({"batch_size": 8, "process_index": 2, "process_count": 2}, "found 2 of 2"),
        ({"batch_size": 8, "start": -1}, "found -1 and 0"),
    ],
)
def test_sizes_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        batches(numbered(200), seed=0, **options)


def test_empty_source():
    with pytest.raises(ValueError, match="empty"):
        batches(numbered(0), batch_size=4, seed=0)
