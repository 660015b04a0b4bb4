import jax
import numpy as np
import pytest

from drifting_jax.data.sources import DigitsSource, as_arrays
from drifting_jax.errors import UserError
from drifting_jax.evaluation.features.classifier import train_classifier
from drifting_jax.evaluation.metrics.frechet import frechet_distance, gaussian_statistics
from drifting_jax.evaluation.metrics.small_images import (
    evaluate_samples,
    figures_as_scalars,
    figures_table,
)


@pytest.fixture(scope="module")
def real():
    return {"train": as_arrays(DigitsSource("train")), "test": as_arrays(DigitsSource("test"))}


@pytest.fixture(scope="module")
def classifier(real):
    return train_classifier(*real["train"], num_classes=10, key=jax.random.key(0))


@pytest.fixture(scope="module")
def of_training_images(real, classifier):
    return evaluate_samples(*real["train"], **real, classifier=classifier)


def test_training_images_as_samples_sit_on_the_floor(of_training_images):
    for name in ("fd_pixels", "fd_classifier", "precision", "recall"):
        figure = of_training_images[name]
        assert figure.value == pytest.approx(figure.floor, rel=1e-6), name
    assert 0.34 < of_training_images["fd_pixels"].floor < 0.36
    assert 0.9 < of_training_images["precision"].floor < 1.0
    assert 0.9 < of_training_images["recall"].floor < 1.0
    assert of_training_images["accuracy"].floor > 0.97
    # They are copies, and that is seen.
    assert of_training_images["nearest_training_ratio"] == (0.0, 1.0, "near 1")


def test_held_out_images_as_samples(real):
    found = evaluate_samples(*real["test"], **real)
    assert found["fd_pixels"].value == pytest.approx(0.0, abs=1e-9)
    assert found["nearest_training_ratio"].value == 1.0
    assert found["precision"].value == found["recall"].value == 1.0
    assert "accuracy" not in found and "fd_classifier" not in found


def test_bad_samples_read_as_bad(real, classifier):
    noise = np.random.default_rng(0).integers(0, 256, (300, 8, 8, 1)).astype(np.uint8)
    found = evaluate_samples(noise, np.arange(300) % 10, **real, classifier=classifier)
    for name in ("fd_pixels", "fd_classifier"):
        assert found[name].better == "lower" and found[name].value > 20 * found[name].floor
    for name in ("precision", "recall", "accuracy"):
        assert found[name].better == "higher" and found[name].value < 0.3 * found[name].floor
    assert found["nearest_training_ratio"].value > 2.0


def test_wrong_labels_cost_accuracy_alone(real, classifier, of_training_images):
    images, labels = real["train"]
    found = evaluate_samples(images, (labels + 1) % 10, **real, classifier=classifier)
    assert found["accuracy"].value < 0.05
    for name in set(found) - {"accuracy"}:
        assert found[name] == of_training_images[name]


def test_floor_of_the_classifier_is_its_test_accuracy(real, classifier, of_training_images):
    images, labels = real["test"]
    prediction = classifier.predict(images)
    assert of_training_images["accuracy"].floor == np.mean(prediction.labels == labels)
    expected = frechet_distance(
        gaussian_statistics(classifier.predict(real["train"][0]).features),
        gaussian_statistics(prediction.features),
    )
    assert of_training_images["fd_classifier"].floor == pytest.approx(expected)


def test_order_of_the_samples_does_not_matter(real):
    images, labels = (array[:200] for array in real["train"])
    rows = np.random.default_rng(0).permutation(200)
    a = evaluate_samples(images, labels, **real)
    b = evaluate_samples(images[rows], labels[rows], **real)
    for name in a:
        assert a[name].value == pytest.approx(b[name].value, rel=1e-6), name


def test_table_and_scalars(of_training_images):
    table = figures_table(of_training_images, num_samples=1347)
    lines = table.splitlines()
    assert "1347 samples" in lines[0] and len(lines) == 2 + len(of_training_images)
    for line, (name, figure) in zip(lines[2:], of_training_images.items(), strict=True):
        assert line.split()[:3] == [name, f"{figure.value:.4f}", f"{figure.floor:.4f}"]
    scalars = figures_as_scalars(of_training_images)
    assert scalars["fd_pixels"] == of_training_images["fd_pixels"].value
    assert scalars["accuracy_floor"] == of_training_images["accuracy"].floor
    assert all(type(value) is float for value in scalars.values())


def test_mistakes_are_named(real):
    images, labels = real["test"]
    broken = images / 127.5 - 1.0
    broken[3, 0, 0] = np.nan
    with pytest.raises(UserError, match="1 of 450 samples hold values that are not finite"):
        evaluate_samples(broken, labels, **real)
    with pytest.raises(UserError, match=r"of uint8, like the data; found .* of float64"):
        evaluate_samples(images / 255.0, labels, **real)
    with pytest.raises(UserError, match=r"\[n, 8, 8, 1\]"):
        evaluate_samples(images[:, :4], labels, **real)
    with pytest.raises(UserError, match="too few samples to measure: 5"):
        evaluate_samples(images[:5], labels[:5], **real)
    with pytest.raises(UserError, match="give a test split that was held out"):
        evaluate_samples(images, labels, train=real["train"], test=real["train"])
    with pytest.raises(UserError, match="a label for each of 450"):
        evaluate_samples(images, labels[:7], **real)
