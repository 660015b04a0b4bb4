"""The streams of random numbers that a run draws from, each with a number that never changes."""

import jax
from ml_collections import ConfigDict

# Streams of a run's root key: fold_in(key(seed), stream).
STREAMS = {"encoder_init": 0, "encoder_steps": 1, "generator_init": 2, "generator_steps": 3,
           "classifier": 4, "pictures": 5, "toy_init": 6, "toy_steps": 7, "samples": 8}  # fmt: skip


def stream_key(config: ConfigDict, name: str) -> jax.Array:
    """The root key of one named use of randomness in a run."""
    return jax.random.fold_in(jax.random.key(config.seed), STREAMS[name])
