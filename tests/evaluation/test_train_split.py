"""Runs of small images against their training split, by the protocol of that name."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
from fake_extractor import make_extractor
from fake_generator import FakeGenerator
from measuring import features, pixels, setup

from drifting_jax.data.in_memory import ArraySource
from drifting_jax.distributed import meshes
from drifting_jax.evaluation import image_evaluation, train_split
from drifting_jax.evaluation.features.source_images import SourceImages
from drifting_jax.evaluation.metrics.frechet import frechet_distance, gaussian_statistics
from drifting_jax.evaluation.setup import Settings, generated_sample_sets

DATA = SimpleNamespace(source="cifar10")


@pytest.fixture
def opened(monkeypatch):
    """Stands for CIFAR-10; the splits that were opened, and whether with labels."""
    found = []

    def make_source(data, split, *, labels):
        found.append((data.source, split, labels))
        return ArraySource(pixels(0, 60), np.arange(60) % 3, ["a", "b", "c"])

    monkeypatch.setattr(train_split, "make_source", make_source)
    return found


def bench(tmp_path, **changes):
    settings = Settings(("fid", "recall"), 3, 0.05)
    extractors = [make_extractor()]
    return setup(
        tmp_path / "out", reference=None, settings=settings, extractors=extractors, **changes
    )


def test_samples_are_compared_with_all_training_images(opened, tmp_path):
    found = train_split.with_train_split(bench(tmp_path), DATA)
    assert opened == [("cifar10", "train", True)]
    expected = gaussian_statistics(features(pixels(0, 60)))
    np.testing.assert_allclose(found.reference.moments["inception"].mean, expected.mean, rtol=1e-6)
    generator = FakeGenerator(meshes.make_mesh(8), class_names=("unlabelled",))
    sets = train_split.recorded(generated_sample_sets(generator, count=40))
    table = image_evaluation.evaluate_images(found, sets, title="run", notes=[])
    assert "FID" in table
    out = tmp_path / "out"
    lines = [json.loads(line) for line in (out / "figures.jsonl").read_text().splitlines()]
    assert {line["protocol"] for line in lines} == {"train_split"}
    samples = features(sets[0].images.pick(range(40)))
    by_name = {line.get("figure"): line for line in lines}
    wanted = frechet_distance(gaussian_statistics(samples), expected)
    np.testing.assert_allclose(by_name["fid"]["value"], wanted, rtol=1e-4)
    page = (out / "report.html").read_text()
    assert "train_split: compared with the whole training split, without flips" in page
    assert "all 60 images of the training split of cifar10, 8x8" in page


def test_statistics_are_kept_as_long_as_they_fit(opened, tmp_path):
    train_split.with_train_split(bench(tmp_path), DATA)
    path = tmp_path / "out" / train_split.REFERENCE_FILE
    before = path.stat().st_mtime_ns
    train_split.with_train_split(bench(tmp_path), DATA)
    assert path.stat().st_mtime_ns == before
    other = dataclasses.replace(bench(tmp_path), extractors=[make_extractor(seed=1)])
    again = train_split.with_train_split(other, DATA)
    assert path.stat().st_mtime_ns != before
    assert again.reference.protocol["inception weights"].endswith("1")
    stopped = bench(tmp_path / "stopped", stopped=lambda: True)
    assert train_split.with_train_split(stopped, DATA) is None


def test_images_of_a_source_come_in_batches_from_any_place():
    images = SourceImages(ArraySource(pixels(2, 11), np.zeros(11, int), ["a"]), "made up")
    mesh = meshes.make_mesh(2)
    batches = list(images.batches(mesh, start=3, batch_size=4))
    found = np.concatenate([np.asarray(b.images)[: len(b.usable)] for b in batches])
    np.testing.assert_array_equal(found, pixels(2, 11)[3:])
    assert [b.usable.tolist() for b in batches] == [[True] * 4, [True] * 4]
