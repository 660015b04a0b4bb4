"""Networks of conditions that are arrays: by which way a condition reaches the samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from drifting_jax.models.calls import apply, init_params
from drifting_jax.models.conditioned import ConditionedGenerator, ConditionedMLP, enlarged
from drifting_jax.models.dit import DiT
from drifting_jax.models.unet import UNet

C, G, SIDE, WIDTH = 2, 3, 4, 8


def dit(*, channels=1, **fields):
    sizes = {"width": 8, "depth": 1, "num_heads": 2, "num_context_tokens": 0}
    return DiT(
        image_size=SIDE,
        patch_size=2,
        num_classes=1,
        styles_per_book=0,
        condition_width=WIDTH,
        in_channels=channels,
        out_channels=1,
        **sizes | fields,
    )


def unet(*, channels=1):
    return UNet(
        image_size=SIDE,
        patch_size=1,
        num_classes=1,
        styles_per_book=0,
        condition_width=WIDTH,
        in_channels=channels,
        out_channels=1,
        width=4,
        num_heads=1,
        multipliers=(1,),
        blocks_per_level=1,
        attention_sides=(),
        groups=2,
    )


def inputs(condition=(5,)):
    noise = jax.random.normal(jax.random.key(0), (C, G, SIDE, SIDE, 1))
    return noise, jax.random.normal(jax.random.key(1), (C, *condition))


def moved(model, *given, without=()):
    """Parameters away from their start; those with these words in their names are zero."""
    params = flatten_dict(init_params(model, jax.random.key(2), *given), sep="/")
    keys = jax.random.split(jax.random.key(3), len(params))
    found = {
        name: jnp.zeros_like(x)
        if any(word in name for word in without)
        else x + 0.3 * jax.random.normal(key, x.shape)
        for key, (name, x) in zip(keys, sorted(params.items()), strict=True)
    }
    return unflatten_dict(found, sep="/")


def changed(model, params, noise, conditions, other):
    """Which samples [c, g] are others for other conditions."""
    function = jax.jit(lambda c: apply(model, params, noise, c))
    found = np.asarray(function(conditions)), np.asarray(function(other))
    assert found[0].shape == noise.shape and found[0].dtype == np.float32
    return np.abs(found[0] - found[1]).max(axis=(2, 3, 4)) > 1e-4


@pytest.mark.parametrize(
    "model",
    [
        ConditionedGenerator(dit(), WIDTH),
        ConditionedGenerator(unet(), WIDTH),
        ConditionedMLP(width=8, depth=1, condition_width=WIDTH),
    ],
    ids=["dit", "unet", "mlp"],
)
def test_a_condition_reaches_all_samples_of_its_row_by_adaln(model):
    noise, conditions = inputs()
    other = conditions.at[1, 2].add(2.0)
    params = moved(model, noise, conditions)
    found = changed(model, params, noise, conditions, other)
    np.testing.assert_array_equal(found, [[False] * G, [True] * G])
    without = moved(model, noise, conditions, without=("modulation",))
    assert not changed(model, without, noise, conditions, other).any()


def test_a_condition_reaches_a_transformer_by_context_tokens():
    model = ConditionedGenerator(dit(num_context_tokens=2), WIDTH)
    noise, conditions = inputs()
    # The gate of a block is in its modulation: only the shifts and scales of other inputs go.
    params = moved(model, noise, conditions, without=("modulation/linear/kernel",))
    found = changed(model, params, noise, conditions, conditions.at[0, 1].add(2.0))
    np.testing.assert_array_equal(found, [[True] * G, [False] * G])
    without = moved(
        model, noise, conditions, without=("modulation/linear/kernel", "context_projection")
    )
    assert not changed(model, without, noise, conditions, conditions + 1).any()


@pytest.mark.parametrize("network", [dit, unet])
def test_a_map_stands_beside_the_noise(network):
    model = ConditionedGenerator(network(channels=3), WIDTH, as_map=True)
    noise, maps = inputs((2, 2, 2))
    params = moved(model, noise, maps, without=("modulation/linear/kernel",))
    found = changed(model, params, noise, maps, maps.at[1, 0, 1, 0].add(2.0))
    np.testing.assert_array_equal(found, [[False] * G, [True] * G])


def test_maps_are_enlarged_by_repeating():
    maps = np.arange(12, dtype=np.float32).reshape(1, 2, 3, 2)
    found = np.asarray(enlarged(jnp.asarray(maps), 4, 9))
    expected = [[maps[0, y // 2, x // 3] for x in range(9)] for y in range(4)]
    np.testing.assert_array_equal(found, [expected])
    with pytest.raises(ValueError, match=r"whose sides divide 4x8; found \[2, 3, 2\]"):
        enlarged(jnp.asarray(maps), 4, 8)


def test_conditions_that_do_not_fit():
    noise, conditions = inputs()
    model = ConditionedGenerator(dit(), WIDTH)
    with pytest.raises(ValueError, match=r"expected noise \[c, g, \.\.\.\] and conditions"):
        init_params(model, jax.random.key(0), noise, conditions[:1])
    for network in (dit(), unet()):
        for given in (jnp.zeros((3, WIDTH + 1)), jnp.zeros(3, jnp.int32)):
            with pytest.raises(ValueError, match=r"expected a condition \[b, 8\] of floats"):
                init_params(network, jax.random.key(0), noise[0], given)
