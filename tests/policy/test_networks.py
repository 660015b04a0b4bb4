"""Networks of a policy: shapes, what each sample depends on, and what cannot be built."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drifting_jax.config import base_config
from drifting_jax.models.calls import apply, init_params
from drifting_jax.policy.networks import make_network

C, G, H, ACTION, OBSERVATIONS, OBSERVATION = 3, 4, 6, 2, 2, 5


def make(kind, **fields):
    config = base_config("policy")
    config.model.kind, config.model.width, config.condition.width = kind, 16, 8
    for name, value in fields.items():
        config.model[name] = value
    return make_network(config)


def inputs():
    noise = jax.random.normal(jax.random.key(0), (C, G, H, ACTION))
    return noise, jax.random.normal(jax.random.key(1), (C, OBSERVATIONS, OBSERVATION))


@pytest.fixture(scope="module", params=["mlp", "transformer"])
def network(request):
    """A network whose modulation is not zero, and its jitted function."""
    model = make(request.param)
    params = init_params(model, jax.random.key(2), *inputs())
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(3), len(leaves))
    moved = [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return params, tree.unflatten(moved), jax.jit(lambda *args: apply(model, *args))


def test_the_first_samples_of_a_condition_differ(network):
    first, _, function = network
    found = np.asarray(function(first, *inputs()))
    assert found.shape == (C, G, H, ACTION) and found.dtype == np.float32
    assert found.std(axis=1).mean() > 0.1


def test_a_sample_depends_on_its_noise_and_its_condition_alone(network):
    _, params, function = network
    noise, observations = inputs()
    before = np.asarray(function(params, noise, observations))
    after = np.asarray(function(params, noise.at[1, 2].add(1.0), observations))
    changed = np.abs(after - before).max(axis=(2, 3)) > 1e-4
    assert changed[1, 2] and changed.sum() == 1
    after = np.asarray(function(params, noise, observations.at[2, 0, 0].add(1.0)))
    changed = np.abs(after - before).max(axis=(2, 3)) > 1e-4
    assert changed[2].all() and not changed[:2].any()


def test_in_context_tokens_carry_the_condition_and_may_be_none():
    noise, observations = inputs()
    found = {}
    for count in (0, 2):
        model = make("transformer", num_context_tokens=count)
        params = init_params(model, jax.random.key(2), noise, observations)
        # Without adaLN, which is zero at first, the condition comes in by its tokens alone.
        outputs = [
            jax.jit(lambda p, o, m=model: apply(m, p, noise, o))(params, o)
            for o in (observations, -observations)
        ]
        found[count] = ("context" in params, float(jnp.abs(outputs[0] - outputs[1]).max()))
    assert found[0] == (False, 0.0) and found[2][0]


def test_inputs_and_heads_that_do_not_fit():
    noise, observations = inputs()
    with pytest.raises(ValueError, match=r"expected noise \[c, g, \.\.\.\] and conditions"):
        init_params(make("mlp"), jax.random.key(0), noise, observations[:2])
    with pytest.raises(ValueError, match="width 16 must be num_heads times an even head width"):
        init_params(make("transformer", num_heads=16), jax.random.key(0), noise, observations)
