"""A small convolutional classifier, trained in seconds, that gives features of small images."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from drifting_jax.models.calls import apply, init_params

_PREDICT_BATCH = 512


class ConvNet(nn.Module):
    """Convolutions with pooling down to 4x4 or less, then one hidden layer.

    Fields: num_classes; width, channels of the first convolution, doubled by the later ones;
    num_features, units of the hidden layer, whose outputs are the features.
    """

    num_classes: int
    width: int = 16
    num_features: int = 64

    @nn.compact
    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """images [b,h,w,c] float32 in [-1,1] -> features [b,num_features], logits [b,classes]."""
        # Full precision: metrics must not change with the accelerator.
        conv = partial(nn.Conv, kernel_size=(3, 3), precision=jax.lax.Precision.HIGHEST)
        dense = partial(nn.Dense, precision=jax.lax.Precision.HIGHEST)
        x, width = images, self.width
        while min(x.shape[1:3]) > 4:
            x = nn.relu(conv(width)(x))  # [b,h,w,width]
            x = nn.avg_pool(x, (2, 2), strides=(2, 2))  # [b,h/2,w/2,width]
            width = 2 * self.width
        x = nn.relu(conv(width)(x))
        features = nn.relu(dense(self.num_features)(x.reshape(len(x), -1)))
        return features, dense(self.num_classes)(features)


class Prediction(NamedTuple):
    """features [n,d] float32, logits [n,num_classes] float32, labels [n] int32 (the likeliest)."""

    features: np.ndarray
    logits: np.ndarray
    labels: np.ndarray


class Classifier:
    """A trained network with its parameters, applied to uint8 images."""

    def __init__(self, net: ConvNet, params: Any):
        self._net, self._params = net, params

    def predict(self, images: np.ndarray) -> Prediction:
        """Features, logits and labels of images [n,h,w,c] uint8, in fixed batches.

        Raises:
          ValueError: no images, or images that are not uint8.
        """
        if images.dtype != np.uint8 or images.ndim != 4 or not len(images):
            raise ValueError(
                f"expected uint8 images [n,h,w,c], found {images.shape} of {images.dtype}"
            )
        parts = [
            _apply(self._net, self._params, _padded(images[first : first + _PREDICT_BATCH]))
            for first in range(0, len(images), _PREDICT_BATCH)
        ]
        features, logits = (
            np.concatenate([np.asarray(part[i]) for part in parts])[: len(images)] for i in (0, 1)
        )
        return Prediction(features, logits, logits.argmax(axis=1).astype(np.int32))


def train_classifier(
    images: np.ndarray,
    labels: np.ndarray,
    *,
    num_classes: int,
    key: jax.Array,
    num_steps: int = 600,
    batch_size: int = 128,
    learning_rate: float = 2e-3,
) -> Classifier:
    """Trains a ConvNet with Adam and a cosine schedule; the same key gives the same classifier.

    Args:
      images: [n,h,w,c] uint8, of the training split alone.
      labels: [n] integers in 0..num_classes-1.
      num_classes: size of the output.
      key: typed PRNG key, for the initial parameters and the batches.
      num_steps: updates; 600 are some 55 passes over the digits, one over MNIST.
      batch_size: images in an update, drawn without replacement.
      learning_rate: at the start of the schedule.

    Raises:
      ValueError: images or labels of another kind, or labels out of range.
    """
    _check(images, labels, num_classes)
    net = ConvNet(num_classes=num_classes)
    init_key, data_key = jax.random.split(key)
    params = _init(net, init_key, images[:1])
    opt_state = _optimizer(num_steps, learning_rate).init(params)
    for rows in _row_batches(data_key, len(images), batch_size, num_steps):
        batch = images[rows], labels[rows].astype(np.int32)
        params, opt_state = _update(net, num_steps, learning_rate, params, opt_state, *batch)
    return Classifier(net, params)


def _optimizer(num_steps: int, learning_rate: float) -> optax.GradientTransformation:
    return optax.adam(optax.cosine_decay_schedule(learning_rate, num_steps))


# The network is static, so that a second classifier of the same shape compiles nothing anew.
@partial(jax.jit, static_argnums=0)
def _init(net, key, images):
    return init_params(net, key, _scaled(images))


@partial(jax.jit, static_argnums=0)
def _apply(net, params, images):
    return apply(net, params, _scaled(images))


@partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=(3, 4))
def _update(net, num_steps, learning_rate, params, opt_state, images, labels):
    def loss(params):
        _, logits = apply(net, params, _scaled(images))
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    optimizer = _optimizer(num_steps, learning_rate)
    updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state, params)
    return optax.apply_updates(params, updates), opt_state


def _scaled(images: jax.Array) -> jax.Array:
    return images.astype(jnp.float32) / 127.5 - 1.0


def _row_batches(key: jax.Array, n: int, batch_size: int, num_steps: int) -> Iterator[np.ndarray]:
    """Row indices of each step's batch: whole batches of one shuffle after another."""
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    batch_size = min(batch_size, n)
    order = np.empty(0, np.int64)
    for _ in range(num_steps):
        if len(order) < batch_size:
            order = rng.permutation(n)
        yield order[:batch_size]
        order = order[batch_size:]


def _padded(images: np.ndarray) -> np.ndarray:
    """A batch padded with zeros to the fixed size, so that one program serves all."""
    missing = _PREDICT_BATCH - len(images)
    return np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0)))


def _check(images: np.ndarray, labels: np.ndarray, num_classes: int) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or not len(images):
        raise ValueError(f"expected uint8 images [n,h,w,c], found {images.shape} of {images.dtype}")
    if labels.shape != images.shape[:1]:
        raise ValueError(f"expected a label for each of {len(images)} images, found {labels.shape}")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"expected labels in 0..{num_classes - 1}, found {labels.min()}..{labels.max()}"
        )
