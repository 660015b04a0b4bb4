"""Streams of random numbers: their numbers are a contract with every run that has begun."""

import jax
import numpy as np

from drifting_jax.config import base_config, streams


def test_the_numbers_of_the_streams_never_change():
    assert streams.STREAMS == {
        "encoder_init": 0,
        "encoder_steps": 1,
        "generator_init": 2,
        "generator_steps": 3,
        "classifier": 4,
        "pictures": 5,
        "toy_init": 6,
        "toy_steps": 7,
        "samples": 8,
        "diagnosis": 9,
        "policy_init": 10,
        "policy_steps": 11,
        "pairs_init": 12,
        "pairs_steps": 13,
    }


def test_a_stream_is_the_root_key_folded_with_its_number():
    config = base_config("toy")
    config.seed = 5
    found = jax.random.key_data(streams.stream_key(config, "samples"))
    expected = jax.random.key_data(jax.random.fold_in(jax.random.key(5), 8))
    np.testing.assert_array_equal(found, expected)
