import numpy as np
import pytest

from drifting_jax.errors import UserError
from drifting_jax.evaluation.metrics.catalogue import METRICS
from drifting_jax.evaluation.metrics.frechet import frechet_distance, gaussian_statistics
from drifting_jax.evaluation.metrics.records import MetricRecord, as_scalars
from drifting_jax.evaluation.metrics.small_images import measure_small_images
from drifting_jax.evaluation.report.tables import baseline_table


def measured(*samples, **settings) -> dict[str, MetricRecord]:
    return {record.metric: record for record in measure_small_images(*samples, **settings)}


@pytest.fixture(scope="module")
def of_training_images(real, classifier):
    return measured(*real["train"], **real, classifier=classifier)


def test_training_images_as_samples_reach_the_baseline(of_training_images):
    for name in ("fd_pixels", "fd_classifier", "precision", "recall"):
        record = of_training_images[name]
        assert record.value == pytest.approx(record.baseline, rel=1e-6), name
    assert 0.34 < of_training_images["fd_pixels"].baseline < 0.36
    assert 0.9 < of_training_images["precision"].baseline < 1.0
    assert 0.9 < of_training_images["recall"].baseline < 1.0
    assert of_training_images["accuracy"].baseline > 0.97
    # They are copies, and that is seen.
    copies = MetricRecord("nearest_training_ratio", 0.0, baseline=1.0)
    assert of_training_images["nearest_training_ratio"] == copies


def test_held_out_images_as_samples(real):
    found = measured(*real["test"], **real)
    assert found["fd_pixels"].value == pytest.approx(0.0, abs=1e-9)
    assert found["nearest_training_ratio"].value == 1.0
    assert found["precision"].value == found["recall"].value == 1.0
    assert "accuracy" not in found and "fd_classifier" not in found


def test_bad_samples_read_as_bad(real, classifier):
    noise = np.random.default_rng(0).integers(0, 256, (300, 8, 8, 1)).astype(np.uint8)
    found = measured(noise, np.arange(300) % 10, **real, classifier=classifier)
    for name in ("fd_pixels", "fd_classifier"):
        assert METRICS[name].better == "lower" and found[name].value > 20 * found[name].baseline
    for name in ("precision", "recall", "accuracy"):
        assert METRICS[name].better == "higher" and found[name].value < 0.3 * found[name].baseline
    assert found["nearest_training_ratio"].value > 2.0


def test_wrong_labels_cost_accuracy_alone(real, classifier, of_training_images):
    images, labels = real["train"]
    found = measured(images, (labels + 1) % 10, **real, classifier=classifier)
    assert found["accuracy"].value < 0.05
    for name in set(found) - {"accuracy"}:
        assert found[name] == of_training_images[name]


def test_baseline_of_the_classifier_is_its_test_accuracy(real, classifier, of_training_images):
    images, labels = real["test"]
    prediction = classifier.predict(images)
    assert of_training_images["accuracy"].baseline == np.mean(prediction.labels == labels)
    expected = frechet_distance(
        gaussian_statistics(classifier.predict(real["train"][0]).features),
        gaussian_statistics(prediction.features),
    )
    assert of_training_images["fd_classifier"].baseline == pytest.approx(expected)


def test_order_of_the_samples_does_not_matter(real):
    images, labels = (array[:200] for array in real["train"])
    rows = np.random.default_rng(0).permutation(200)
    a = measured(images, labels, **real)
    b = measured(images[rows], labels[rows], **real)
    for name in a:
        assert a[name].value == pytest.approx(b[name].value, rel=1e-6), name


def test_table_and_scalars(of_training_images):
    records = list(of_training_images.values())
    table = baseline_table(records, num_samples=1347)
    lines = table.splitlines()
    assert "1347 samples" in lines[0] and len(lines) == 2 + len(of_training_images)
    for line, record in zip(lines[2:], records, strict=True):
        words = [record.metric, f"{record.value:.4f}", f"{record.baseline:.4f}"]
        assert line.split(maxsplit=3) == [*words, METRICS[record.metric].better]
    scalars = as_scalars(records)
    assert scalars["fd_pixels"] == of_training_images["fd_pixels"].value
    assert scalars["accuracy_floor"] == of_training_images["accuracy"].baseline
    assert all(type(value) is float for value in scalars.values())


def test_mistakes_are_named(real):
    images, labels = real["test"]
    broken = images / 127.5 - 1.0
    broken[3, 0, 0] = np.nan
    with pytest.raises(UserError, match="1 of 450 samples hold values that are not finite"):
        measure_small_images(broken, labels, **real)
    with pytest.raises(UserError, match=r"of uint8, like the data; found .* of float64"):
        measure_small_images(images / 255.0, labels, **real)
    with pytest.raises(UserError, match=r"\[n, 8, 8, 1\]"):
        measure_small_images(images[:, :4], labels, **real)
    with pytest.raises(UserError, match="too few samples to measure: 5"):
        measure_small_images(images[:5], labels[:5], **real)
    with pytest.raises(UserError, match="give a test split that was held out"):
        measure_small_images(images, labels, train=real["train"], test=real["train"])
    with pytest.raises(UserError, match="a label for each of 450"):
        measure_small_images(images, labels[:7], **real)


def test_samples_without_labels_have_no_accuracy(real, classifier):
    samples = real["test"][0], np.zeros(len(real["test"][0]), int)
    found = measured(*samples, **real, classifier=classifier, labelled=False)
    assert "accuracy" not in found
    # The distance of a set to itself, relative to its variance: rounding of float64.
    features = classifier.predict(samples[0]).features.astype(np.float64)
    assert abs(found["fd_classifier"].value) < 1e-11 * features.var(axis=0).sum()
