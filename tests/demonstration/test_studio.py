"""The studio: the same pictures as the sampler's, for several visitors, with honest times."""

import threading

import jax
import numpy as np
import pytest
from tiny_generator import random_params, tiny_generator

from drifting_jax.demonstration.studio import Studio, Wish
from drifting_jax.errors import UserError


def wish(**changes):
    fields = {"label": 3, "alpha": 1.5, "average": 0.9, "rows": 4, "seeds": (7,)}
    return Wish(**(fields | changes))


@pytest.fixture(scope="module")
def studio():
    return Studio(
        tiny_generator(),
        averages=(0.9, 0.99),
        load_average=lambda decay: tiny_generator(1, ema_decay=decay),
    )


def test_a_picture_is_what_the_sample_command_makes(studio):
    made = studio.make(wish())
    expected = tiny_generator().sample(
        np.full(4, 3, np.int32), np.arange(4, dtype=np.int32), seed=7, cfg_scale=1.5
    )
    np.testing.assert_array_equal(made.images, expected)
    np.testing.assert_array_equal(made.labels, [3, 3, 3, 3])
    other = studio.make(wish(alpha=3.0)).images
    assert (other != expected).any()


def test_the_first_call_of_a_size_compiles_and_is_not_what_is_timed(studio):
    first = wish(rows=3)
    assert studio.compiles(first)
    made = studio.make(first)
    assert made.compile_seconds > 0 and 0 < made.seconds < made.compile_seconds
    for same in (wish(rows=3, alpha=2.0, seeds=(0,), label=1), wish(rows=3, average=0.99)):
        assert not studio.compiles(same)
        assert studio.make(same).compile_seconds is None
    assert studio.compiles(wish(rows=5))


def test_another_average_is_read_once_and_has_its_own_weights(studio):
    reads = []

    def load(decay):
        reads.append(decay)
        return tiny_generator(1, ema_decay=decay)

    both = Studio(studio.generator, averages=(0.9, 0.99), load_average=load)
    first, other = (both.make(wish(average=decay)).images for decay in (0.9, 0.99))
    np.testing.assert_array_equal(both.make(wish(average=0.99)).images, other)
    assert reads == [0.99]
    expected = tiny_generator(1).sample(
        np.full(4, 3, np.int32), np.arange(4, dtype=np.int32), seed=7, cfg_scale=1.5
    )
    np.testing.assert_array_equal(other, expected)
    assert (first != other).any()


def test_rows_between_two_seeds_begin_and_end_with_their_samples(studio):
    made = studio.make(wish(rows=2, columns=4, seeds=(7, 8), label=-1))
    assert made.images.shape == (8, 4, 4, 1)
    np.testing.assert_array_equal(made.labels, [0, 0, 0, 0, 1, 1, 1, 1])
    for column, seed in ((0, 7), (3, 8)):
        ends = made.images[[column, 4 + column]].astype(int)
        samples = studio.make(wish(rows=2, seeds=(seed,), label=-1)).images
        np.testing.assert_allclose(ends, samples, atol=1, rtol=0)


def test_visitors_at_once_get_their_own_pictures(studio):
    alone = {seed: studio.make(wish(seeds=(seed,))).images for seed in range(6)}
    together = {}

    def visit(seed):
        together[seed] = studio.make(wish(seeds=(seed,))).images

    threads = [threading.Thread(target=visit, args=(seed,)) for seed in alone]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, images in alone.items():
        np.testing.assert_array_equal(together[seed], images)


def test_calls_wait_for_each_other(studio):
    inside, most = [], []
    sampler = studio.generator.sampler

    def watched(*args):
        inside.append(1)
        most.append(len(inside))
        found = jax.block_until_ready(sampler(*args))
        inside.pop()
        return found

    watched_studio = Studio(tiny_generator(sampler=watched))
    threads = [threading.Thread(target=lambda: watched_studio.make(wish(rows=3))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 5  # the first call is repeated


def test_what_cannot_be_shown():
    with pytest.raises(UserError, match="makes latents"):
        Studio(tiny_generator(makes_pixels=False))
    damaged = jax.tree.map(lambda x: np.full_like(x, np.nan), random_params(0))
    with pytest.raises(UserError, match="4 of 4 samples are not finite"):
        Studio(tiny_generator(params=damaged)).make(wish())
