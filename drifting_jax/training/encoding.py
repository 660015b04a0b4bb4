"""The features of a config's encoders as they are found, with nothing trained."""

from typing import Any

from jax.sharding import Mesh

from drifting_jax.config import ConfigDict
from drifting_jax.data.sources import DataSpec
from drifting_jax.method.encoders import FeatureFunction
from drifting_jax.training import build, frozen
from drifting_jax.training.encoder import read_trained

PyTree = Any


def load_features(config: ConfigDict, spec: DataSpec, mesh: Mesh) -> tuple[FeatureFunction, PyTree]:
    """Returns the feature function of a config, and the variables of its encoders on the devices.

    Without config.encoder.path there is no masked autoencoder. What remains are the features of
    encoders of pixels, if there are any, and the raw samples, if config.features.raw is set.

    Raises:
      UserError: an encoder is not there, not trained to its end, or does not fit the config.
    """
    trained = config.encoder.path if config.encoder.kind != "none" else ""
    params = read_trained(config, spec, mesh, trained)[1] if trained else None
    networks = frozen.place_networks(config, params, frozen.load_pretrained(config, spec), mesh)
    function = build.make_feature_function(
        config, spec, extras=networks.extras, vae=networks.decoder, autoencoder=params is not None
    )
    return function, networks.variables
