"""Streams of random numbers: each use of randomness in a run has a number of its own.

The numbers are a contract: a run that is resumed, by this version or a later one, draws the same.
"""

import jax
from ml_collections import ConfigDict

STREAMS = {"encoder_init": 0, "encoder_steps": 1, "generator_init": 2, "generator_steps": 3,
           "classifier": 4, "pictures": 5, "toy_init": 6, "toy_steps": 7, "samples": 8,
           "diagnosis": 9, "policy_init": 10, "policy_steps": 11,
           "pairs_init": 12, "pairs_steps": 13}  # fmt: skip


def root_key(seed: int | jax.Array) -> jax.Array:
    """Returns the key [] of a seed from 0 to 2**32 - 1; every key of the package begins here.

    The implementation is threefry2x32, whatever JAX's default is set to: that of another
    (JAX_DEFAULT_PRNG_IMPL=rbg) draws numbers that depend on the batch.
    """
    return jax.random.key(seed, impl="threefry2x32")


def samples_key(seed: int | jax.Array) -> jax.Array:
    """Returns the key [] of the samples of a seed, a number or [] uint32."""
    return jax.random.fold_in(root_key(seed), STREAMS["samples"])


def stream_key(config: ConfigDict, name: str) -> jax.Array:
    """Returns the key of a stream: the root key of the run, folded with the stream's number.

    Args:
      config: of the run; its `seed` makes the root key.
      name: one of `STREAMS`.
    """
    return jax.random.fold_in(root_key(config.seed), STREAMS[name])
