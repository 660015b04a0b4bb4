"""The public API: every name is there, documented, and imported when it is first used."""

import subprocess
import sys

import jax.numpy as jnp
import pytest

import drifting_jax as dj


def test_every_public_name_is_there_and_documented():
    assert len(dj.__all__) <= 13
    for name in dj.__all__:
        assert getattr(dj, name).__doc__, name
        assert f"`{name}`" in dj.__doc__, name
        assert name in dir(dj)


def test_importing_the_package_imports_no_library():
    program = (
        "import sys, drifting_jax\n"
        "heavy = {'jax', 'flax', 'numpy', 'grain', 'orbax', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "drifting_jax.drifting_loss\n"
        "heavy = {'grain', 'orbax', 'matplotlib', 'PIL', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_the_loss_and_the_field_from_the_top():
    x, y = jnp.zeros((4, 2)), jnp.ones((4, 2))
    loss, statistics = dj.drifting_loss(x[None, :, None], y[None, :, None])
    assert jnp.isfinite(loss) and isinstance(statistics, dj.DriftingStatistics)
    v = dj.drifting_field(x, y, x, temperature=0.5, exclude_self=True)
    assert v.shape == (4, 2) and (v > 0).all()


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="has no attribute 'drift'"):
        dj.drift  # noqa: B018
