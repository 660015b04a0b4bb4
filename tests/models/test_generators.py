"""The table of generators: what is built, the inputs that are drawn, and initial parameters."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drifting_jax.models import generators
from drifting_jax.models.dit import DiT
from drifting_jax.models.mlp import MLP

SECTION = SimpleNamespace(
    patch_size=2, width=16, depth=1, num_heads=2, mlp_ratio=2.0, num_context_tokens=1,
    num_style_books=3, styles_per_book=5, dtype="bfloat16", attention_dtype="float32",
    remat=True, scan=False,
)  # fmt: skip
MODEL = DiT(
    image_size=8, in_channels=4, out_channels=4, patch_size=2, width=16, depth=1, num_heads=2,
    num_classes=7, mlp_ratio=2.0, num_context_tokens=1, num_style_books=3, styles_per_book=5,
    dtype=jnp.dtype("bfloat16"), attention_dtype=jnp.dtype("float32"), remat=True,
)  # fmt: skip


def test_a_section_describes_a_generator():
    made = generators.make_generator(SECTION, kind="dit", image_shape=(8, 8, 4), num_classes=7)
    assert made == MODEL
    assert generators.kind_of(made) == "dit" and generators.is_generator(made)


def test_what_cannot_be_built_is_said():
    with pytest.raises(ValueError, match="kind must be one of dit, unet; found 'gan'"):
        generators.make_generator(SECTION, kind="gan", image_shape=(8, 8, 4), num_classes=7)
    with pytest.raises(ValueError, match="makes square images; found 8x6"):
        generators.make_generator(SECTION, kind="dit", image_shape=(8, 6, 4), num_classes=7)
    assert not generators.is_generator(MLP())
    with pytest.raises(ValueError, match="expected a generator, one of dit, unet; found a MLP"):
        generators.kind_of(MLP())


def test_inputs_of_a_sample():
    """The numbers of the random streams are a contract."""
    key = jax.random.key(3)
    noise, styles = jax.jit(lambda key: generators.draw_inputs(key, MODEL))(key)
    noise_key, style_key = jax.random.split(key)
    np.testing.assert_array_equal(noise, jax.random.normal(noise_key, (8, 8, 4)))
    np.testing.assert_array_equal(styles, jax.random.randint(style_key, (3,), 0, 5))
    assert noise.dtype == jnp.float32 and styles.dtype == jnp.int32


def test_initial_parameters():
    """They depend on the key alone, not on the inputs that the network is called with."""
    key = jax.random.key(3)
    found = jax.jit(lambda key: generators.init_generator(key, MODEL))(key)
    zeros = jnp.zeros((1, 8, 8, 4)), jnp.zeros(1, jnp.int32), jnp.zeros((1, 3), jnp.int32)
    expected = jax.jit(MODEL.init)(key, *zeros, jnp.ones(1))["params"]
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(found))
