"""Whether the data and the filled queue hold enough samples of every class."""

import json
import re
import shutil
import time
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from drifting_jax.config import base_config
from drifting_jax.data import probing
from drifting_jax.data.in_memory import ArraySource
from drifting_jax.data.transforms import FailedRead, UnreadableImage
from drifting_jax.errors import UserError
from drifting_jax.training import data_identity, filling

NAMES = ["ant", "bee", "cat", "dog", "elk"]


def config(positives, unconditional, *, repeats=False):
    found = base_config("generator")
    found.train.positives_per_label = positives
    found.train.unconditional_per_label = unconditional
    found.queue.allow_repeats = repeats
    return found


def queue(filled, of_any):
    """The fields that `check_queue` reads; the class after the last is the mesh's padding."""
    ring = SimpleNamespace(filled=np.array([*filled, 0], np.int32))
    return SimpleNamespace(
        by_class=ring, num_classes=len(filled), unconditional=SimpleNamespace(filled=of_any)
    )


def source(counts):
    labels = np.repeat(np.arange(len(counts)), counts)
    return ArraySource(np.zeros((len(labels), 1, 1, 1), np.uint8), labels, NAMES)


@pytest.mark.parametrize("checked", ["queue", "data"])
def test_what_is_short_is_named(checked):
    counts = (6, 6, 7, 5, 3)

    def check(*sizes, counts=counts, **more):
        if checked == "queue":
            filling.check_queue(config(*sizes, **more), queue(counts, sum(counts)), NAMES)
        else:
            filling.check_source(config(*sizes, **more), source(counts))

    check(3, 27)
    check(9, 99, repeats=True)
    with pytest.raises(UserError, match=rf"at least 4 .* of each class in the {checked}, .*: elk"):
        check(4, 0)
    with pytest.raises(UserError, match=r"4 classes: ant \(6\), bee \(6\), dog \(5\), elk \(3\);"):
        check(7, 0)
    with pytest.raises(UserError, match=r"at least 28 samples of any .*found 27; .*draws? fewer"):
        check(3, 28)
    with pytest.raises(UserError, match=r"at least 1 samples .*1 classes: bee \(0\);"):
        check(2, 0, counts=(1, 0, 2, 1, 1), repeats=True)


def test_labels_that_cost_a_pass_over_the_data_are_left_to_the_queue():
    few = source((1, 1, 1, 1, 1))
    with pytest.raises(UserError, match="at least 4 samples"):
        filling.check_source(config(4, 0), few)
    few.labels_are_cheap = False
    filling.check_source(config(4, 0), few)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Six images of each class; those of "dead" are error pages, one of "torn" is cut off."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("dead", "good", "torn"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(6):
            path = tmp_path / "data" / name / f"{i}.png"
            Image.new("RGB", (9, 9), (40 * i, 0, 0)).save(path)
    for path in (tmp_path / "data" / "dead").iterdir():
        path.write_text("<html>403 Forbidden</html>")
    path = tmp_path / "data" / "torn" / "3.png"
    path.write_bytes(path.read_bytes()[:-30])
    return tmp_path / "data"


def check(folder, workdir, positives=6, *, after_encoder=False, **more):
    """What a start does: opens the data and checks it."""
    found = config(positives, 2, **more)
    found.data.update(source="images", path=str(folder), image_size=8)
    workdir.mkdir(exist_ok=True)
    source = data_identity.open_source(found, workdir)
    if after_encoder:
        filling.check_after_encoder(found, source, workdir)
    else:
        filling.check_source(found, source, workdir)


def test_a_class_of_error_pages_is_found_before_the_training(folder, tmp_path):
    workdir = tmp_path / "run"
    for repeats in (False, True):
        with pytest.raises(UserError) as caught:
            check(folder, workdir, repeats=repeats)
        message = str(caught.value)
        assert (
            f"expected at least {1 if repeats else 6} samples of each class in the data" in message
        )
        assert re.search(
            r"dead \(0 of 6, the others cannot be read, such as dead/\d\.png of .*: not an image: "
            r"it begins with b'<html>403 Forbidden", message
        )  # fmt: skip
        assert "add readable files to a class that has none, or remove it from the data" in message
        assert "allow_repeats" not in message or not repeats
    shutil.rmtree(folder / "dead")  # as the message says
    check(folder, workdir, repeats=True)
    with pytest.raises(
        UserError, match=r"torn \(5 of 6, .* such as torn/3\.png .*: truncated"
    ) as caught:
        check(folder, workdir)
    advised = re.search(r"--config\.train\.positives_per_label=(\d+)\)", str(caught.value))
    check(folder, workdir, int(advised[1]))


def note(workdir, folder, *names):
    """What the encoder's batches leave: a checkpoint and a log of unreadable records."""
    (workdir / "encoder" / "checkpoints" / "9").mkdir(parents=True)
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))
    lines = [json.dumps({"index": files.index(name), "name": name}) for name in names]
    (workdir / "unreadable_0.jsonl").write_text("\n".join(lines) + "\n")


def test_what_the_encoder_could_not_read_counts(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(probing, "_SECONDS_OF_SMALL", 0.0)  # nothing is found by probing
    shutil.rmtree(folder / "dead")
    workdir = tmp_path / "run"
    check(folder, workdir)
    note(workdir, folder, "torn/3.png", "good/1.png")
    for after_encoder in (False, True):
        with pytest.raises(UserError) as caught:
            check(folder, workdir, after_encoder=after_encoder)
        message = str(caught.value)
        assert (
            "begin another --workdir that draws fewer" in message
            and "--config.encoder.path" in message
        )
    monkeypatch.setattr(probing, "_SECONDS_OF_SMALL", 3.0)
    with pytest.raises(UserError, match=r"1 classes: torn \(5 of 6, .*truncated"):
        check(folder, workdir, after_encoder=True)  # good/1.png can be read again
    shutil.copy(folder / "torn" / "2.png", folder / "torn" / "3.png")
    check(folder, workdir, after_encoder=True)


def test_a_dead_class_found_after_the_encoder_can_be_mended(folder, tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    with pytest.raises(UserError, match="add readable files"):
        check(folder, workdir)
    note(workdir, folder, *[f"dead/{i}.png" for i in range(6)])
    with pytest.raises(UserError, match=r"put readable files in place .* under the same names"):
        check(folder, workdir, 5, after_encoder=True)
    for path in (folder / "good").iterdir():
        shutil.copy(path, folder / "dead" / path.name)
    check(folder, workdir, 5, after_encoder=True)
    check(folder, workdir, 5)


def test_a_generator_that_has_begun_is_not_stopped(folder, tmp_path):
    workdir = tmp_path / "run"
    with pytest.raises(UserError, match="dead"):
        check(folder, workdir)
    (workdir / "checkpoints" / "100").mkdir(parents=True)
    check(folder, workdir)


class Slow:
    """A class of `dead` unreadable records, then others; each read takes a while."""

    class_names, num_classes = NAMES[:3], 3

    def __init__(self, counts, dead=(), seconds=0.0, error=UnreadableImage):
        self.labels = np.repeat(np.arange(3), counts).astype(np.int32)
        self.dead, self.seconds, self.error = dead, seconds, error
        self.read = []

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        self.read.append(index)
        time.sleep(self.seconds)
        if self.labels[index] in self.dead:
            raise self.error("damaged")


def test_probing_reads_what_it_needs():
    found = probing.probe(Slow((50, 4, 2000), dead={1}), least=6, seconds=60)
    assert found.tried.tolist() == [6, 4, 6] and found.readable.tolist() == [6, 0, 6]
    assert set(found.unreadable) == set(range(50, 54)) and found.unreadable[50] == "damaged"
    found = probing.probe(Slow((5, 5, 5), dead={0}, error=FailedRead), least=9, seconds=60)
    assert not found.unreadable and found.readable.tolist() == [0, 5, 5]


def test_probing_is_bounded_in_time():
    million = Slow((400_000, 400_000, 400_000), dead={0}, seconds=0.002)
    assert probing.seconds_for(million) < 1
    before = time.monotonic()
    found = probing.probe(million, least=64, seconds=0.5)
    assert time.monotonic() - before < 5  # with what sorting takes on a busy machine
    assert len(found.unreadable) > 3 and found.readable[1] > 0
