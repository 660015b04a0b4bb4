"""A generator starts from the weights that config.model.init_from names, unless it has begun."""

import shutil

import jax
import numpy as np
import pytest
from tiny_run import config

from drifting_jax.data.sources import make_source, spec_of
from drifting_jax.distributed import transfer
from drifting_jax.errors import UserError
from drifting_jax.training import build, initial_states, programs, run, stage
from drifting_jax.weights.networks import Network, load_network, save_network
from drifting_jax.workdir.checkpoint import Checkpoints


@pytest.fixture(scope="module")
def spec():
    return spec_of(make_source(config().data, "train"))


@pytest.fixture(scope="module")
def folder(spec, tmp_path_factory):
    """Random weights of the tiny config's generator."""
    found, rng = config(), np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: initial_states.init_generator(found, spec).params)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), shapes)
    path = tmp_path_factory.mktemp("weights") / "hub"
    model = build.make_generator(found, spec)
    save_network(path, Network("generator", model, {"params": params}, 5, 0.9), for_hub=True)
    return path


def assert_same(found, expected):
    jax.tree.map(np.testing.assert_array_equal, transfer.fetch(found), transfer.fetch(expected))


def test_the_first_carry_has_exactly_these_parameters(folder, spec, tmp_path):
    found = config(model__init_from=str(folder))
    start = initial_states.read_start(found, spec)
    program = programs.generator_program(found, spec, build.make_mesh(found))
    expected = load_network(folder).variables["params"]
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        steps, taken, carry = stage.start_or_resume(program, checkpoints, params=start)
        assert (steps, taken) == (0, 0)
        assert_same(carry.state.params, expected)
        assert carry.state.ema.keys() == {"0.9", "0.99"}
        for average in carry.state.ema.values():
            assert_same(average, expected)
        random = program.first_carry()
        assert_same(carry.state.opt_state, random.state.opt_state)
        checkpoints.save(3, program.checkpoint_items(random, 9))
        checkpoints.wait()
        steps, taken, carry = stage.start_or_resume(program, checkpoints, params=start)
        assert (steps, taken) == (3, 9)  # the checkpoint counts
        assert_same(carry.state.params, random.state.params)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model__width": 32}, r"init_from\) differs from .*: width 16 there, 32 here"),
        ({"model__num_heads": 4}, "num_heads 2 there, 4 here"),
        ({"model__scan": True}, "scan False there, True here"),
        ({"model__depth": 2, "model__patch_size": 2}, "patch_size 4 there, 2 here, depth 1 there"),
    ],
)
def test_another_generator_is_refused_before_anything_is_made(folder, tmp_path, changes, message):
    with pytest.raises(UserError, match=message) as error:
        run.run(config(model__init_from=str(folder), **changes), workdir=tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run" / "encoder").exists()


def test_weights_that_are_not_there(tmp_path):
    with pytest.raises(UserError, match="there is no file or folder"):
        run.run(config(model__init_from=str(tmp_path / "none")), workdir=tmp_path / "run")


@pytest.mark.slow
def test_a_run_starts_there_and_goes_on_without_the_folder(folder, tmp_path):
    weights = shutil.copytree(folder, tmp_path / "weights")
    expected = load_network(weights).variables["params"]
    changes = {
        "model__init_from": str(weights),
        "optim__learning_rate": 1e-30,  # nothing moves
        "optim__warmup_steps": 0,
        "encoder__train__num_steps": 12,
        "train__save_every": 1,
        "eval__every": 0,
    }

    def trained(steps):
        assert run.run(config(train__num_steps=steps, **changes), workdir=tmp_path / "run") == 0
        found = config(**changes)
        spec = spec_of(make_source(found.data, "train"))
        program = programs.generator_program(found, spec, build.make_mesh(found))
        with Checkpoints(tmp_path / "run" / "checkpoints", keep=1, read_only=True) as checkpoints:
            step, items = checkpoints.restore_latest(program.checkpoint_items(program.carry, 0))
        assert step == steps
        return items["state"]

    assert_same(trained(2).params, expected)
    shutil.rmtree(weights)
    assert_same(trained(3).params, expected)
