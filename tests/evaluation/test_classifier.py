import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drifting_jax.evaluation.features.classifier import ConvNet, train_classifier


def test_recognises_digits_it_never_saw(classifier, real):
    images, labels = real["test"]
    prediction = classifier.predict(images)
    assert np.mean(prediction.labels == labels) > 0.97
    assert prediction.features.shape == (450, 64) and prediction.logits.shape == (450, 10)
    assert prediction.labels.dtype == np.int32
    np.testing.assert_array_equal(prediction.labels, prediction.logits.argmax(axis=1))


def test_prediction_does_not_depend_on_the_other_images(classifier, real):
    images, _ = real["train"]
    whole = classifier.predict(images)  # more than one inner batch, the last one short
    assert whole.features.shape == (1347, 64)
    alone = classifier.predict(images[600:601])
    np.testing.assert_allclose(alone.features, whole.features[600:601], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(alone.logits, whole.logits[600:601], rtol=1e-5, atol=1e-5)


def test_same_key_same_classifier(real):
    images, labels = real["train"]
    held_out, _ = real["test"]

    def logits(seed):
        options = {"num_classes": 10, "num_steps": 3, "key": jax.random.key(seed)}
        return train_classifier(images, labels, **options).predict(held_out[:5]).logits

    np.testing.assert_array_equal(logits(1), logits(1))
    assert not np.allclose(logits(1), logits(2))


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(28, 28, 1), (32, 32, 3)])
def test_learns_other_image_sizes(shape):
    # Two classes told apart by brightness, fewer images than a batch holds.
    labels = np.arange(40) % 2
    noise = np.random.default_rng(0).integers(0, 100, (40, *shape))
    images = (noise + 150 * labels[:, None, None, None]).astype(np.uint8)
    trained = train_classifier(images, labels, num_classes=2, num_steps=15, key=jax.random.key(0))
    prediction = trained.predict(images)
    assert np.mean(prediction.labels == labels) == 1.0
    assert np.isfinite(prediction.features).all()


def test_products_are_at_full_precision():
    net = ConvNet(num_classes=3)
    params = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((2, 8, 8, 1)))
    text = jax.jit(net.apply).lower(params, jnp.zeros((2, 8, 8, 1))).as_text()
    products = [
        line for line in text.splitlines() if "stablehlo.dot" in line or ".convolution" in line
    ]
    assert len(products) == 4
    assert all("HIGHEST" in line for line in products)


def test_mistakes_are_named(classifier):
    images, labels = np.zeros((4, 8, 8, 1), np.uint8), np.array([0, 1, 2, 3])
    options = {"num_classes": 3, "key": jax.random.key(0)}
    with pytest.raises(ValueError, match=r"labels in 0\.\.2, found 0\.\.3"):
        train_classifier(images, labels, **options)
    with pytest.raises(ValueError, match=r"each of 4 images, found \(3,\)"):
        train_classifier(images, labels[:3], **options)
    with pytest.raises(ValueError, match=r"found .* of float64"):
        train_classifier(images / 255.0, labels, **options)
    with pytest.raises(ValueError, match=r"found \(0, 8, 8, 1\)"):
        classifier.predict(images[:0])
