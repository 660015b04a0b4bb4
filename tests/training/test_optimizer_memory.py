"""What the optimizer's moments take: one of them in bfloat16, or all in the host's memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drifting_jax.compatibility import CPU_HAS_HOST_MEMORY
from drifting_jax.config import base_config, resolve
from drifting_jax.distributed import meshes
from drifting_jax.training import build, programs
from drifting_jax.training.program import carry_of
from drifting_jax.workdir.checkpoint import Checkpoints

STEPS = 3


def program(**changes):
    found = base_config("toy")
    small = {"mesh.data": 1, "model.widths": (8,), "train.generated": 16, "train.positives": 16}
    optim = {f"optim.{name}": value for name, value in changes.items()}
    found.update_from_flattened_dict(small | optim)
    found = resolve(found)
    return programs.toy_program(found, build.make_mesh(found))


def after(found, carry=None, *, steps=STEPS):
    """The carry after some steps on the same points."""
    carry = carry or found.first_carry()
    rng = np.random.default_rng(0)
    points = jnp.asarray(rng.normal(size=found.batch["image"].shape), jnp.float32)
    batch = {"image": points, "label": jnp.zeros(len(points), jnp.int32)}
    for _ in range(steps):
        carry, _ = found.step(carry, found.frozen, batch)
    return carry


def kinds(tree) -> set[str]:
    return {x.sharding.memory_kind for x in jax.tree.leaves(tree)}


def assert_same(found, expected):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), jax.device_get(expected))


@pytest.mark.skipif(not CPU_HAS_HOST_MEMORY, reason="this JAX keeps nothing there for a CPU")
def test_moments_on_the_host_change_no_number(tmp_path):
    plain, host = program(), program(moments_on_host=True)
    assert meshes.bytes_per_device(host.carry) < meshes.bytes_per_device(plain.carry)
    expected, found = after(plain), after(host)
    assert kinds(found.state.opt_state) == {"pinned_host"}
    assert kinds(found.state.params) == kinds(expected.state.opt_state) == {"device"}
    assert_same(found, expected)

    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(STEPS, host.checkpoint_items(found, 0))
    with Checkpoints(tmp_path, keep=1, read_only=True) as checkpoints:
        for other in (host, plain):  # a run goes on with the moments in either place
            step, items = checkpoints.restore_latest(other.checkpoint_items(other.carry, 0))
            carry = carry_of(items)
            assert step == STEPS and kinds(carry.state.opt_state) == kinds(
                other.carry.state.opt_state
            )
            assert_same(after(other, carry, steps=1), after(plain, steps=STEPS + 1))


@pytest.mark.parametrize("steps", [1, 20])
def test_a_first_moment_in_bfloat16_takes_half_and_changes_little(steps):
    plain, half = program(), program(first_moment_dtype="bfloat16")
    expected, found = after(plain, steps=steps), after(half, steps=steps)
    dtypes = {x.dtype.name for x in jax.tree.leaves(found.state.opt_state)}
    assert dtypes == {"bfloat16", "float32", "int32"}
    before = plain.first_carry().state.params
    for start, a, b in zip(
        *map(jax.tree.leaves, (before, found.state.params, expected.state.params)), strict=True
    ):
        moved = np.abs(np.asarray(b) - np.asarray(start)).max()
        assert moved > 0 and np.abs(np.asarray(a) - np.asarray(b)).max() < 0.02 * moved
