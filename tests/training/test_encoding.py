"""The features of a config's encoders, read and not trained."""

import jax
import numpy as np
import pytest
import tiny_config

from drifting_jax.config import resolve
from drifting_jax.data.sources import data_spec
from drifting_jax.distributed import meshes
from drifting_jax.errors import UserError
from drifting_jax.models.calls import init_params
from drifting_jax.models.resnet_mae import draw_mask
from drifting_jax.training import build
from drifting_jax.training.encoding import load_features
from drifting_jax.weights.networks import Network, save_network


@pytest.fixture
def config():
    return resolve(tiny_config.get_config())


def features_of(config):
    function, variables = load_features(config, data_spec(config.data), meshes.make_mesh(1, 1))
    return function(variables, jax.numpy.ones((2, 8, 8, 1)))


def test_without_an_encoder_there_are_raw_samples_alone(config):
    found = features_of(config)
    assert {name: x.shape for name, x in found.items()} == {"raw": (2, 1, 64)}


def test_an_encoder_in_a_folder_of_weights(config, tmp_path):
    spec, key = data_spec(config.data), jax.random.key(0)
    model = build.make_encoder(config, spec)
    mask = draw_mask(key, 1, 8, 8, mask_patch_size=model.mask_patch_size)
    params = init_params(model, key, np.zeros((1, 8, 8, 1), np.float32), mask)
    save_network(tmp_path / "encoder", Network("autoencoder", model, {"params": params}, 7, 0.9))
    config.encoder.path = str(tmp_path / "encoder")
    found = features_of(config)
    assert {"raw", "input/rms", "stage1", "stage1/mean"} <= set(found)
    assert all(np.isfinite(x).all() for x in found.values())
    config.encoder.width = 8
    with pytest.raises(UserError, match="other sizes"):
        features_of(config)
