"""A generator of 4x4 images with random parameters, ready to sample on one device."""

import functools

import jax
import numpy as np

from drifting_jax.distributed import meshes
from drifting_jax.models import generators
from drifting_jax.models.dit import DiT
from drifting_jax.steps import sampling
from drifting_jax.steps.generator import Generator

MODEL = DiT(
    image_size=4,
    in_channels=1,
    out_channels=1,
    patch_size=2,
    width=16,
    depth=1,
    num_heads=2,
    num_classes=5,
    num_context_tokens=2,
    num_style_books=4,
    styles_per_book=8,
)


def random_params(seed: int):
    """Random ones: the initial output is zero."""
    init = functools.partial(generators.init_generator, model=MODEL)
    leaves, tree = jax.tree.flatten(jax.eval_shape(init, jax.random.key(0)))
    rng = np.random.default_rng(seed)
    return tree.unflatten([rng.normal(0, 0.3, leaf.shape).astype(np.float32) for leaf in leaves])


def tiny_generator(seed: int = 0, *, ema_decay: float = 0.9, **changes) -> Generator:
    """A `Generator` of five classes."""
    mesh = meshes.make_mesh(1, 1, devices=jax.devices()[:1])
    fields = {
        "step": 7,
        "ema_decay": ema_decay,
        "params": random_params(seed),
        "class_names": list("abcde"),
        "mesh": mesh,
        "sampler": sampling.make_sampler(MODEL, mesh),
        "model": MODEL,
        "vae": None,
        "makes_pixels": True,
    }
    return Generator(**(fields | changes))
