"""The queue of real samples that a config describes."""

import jax.numpy as jnp
from jax.sharding import Mesh

from drifting_jax.config import ConfigDict
from drifting_jax.data.sources import DataSpec
from drifting_jax.steps import dataset_queue, sample_queue
from drifting_jax.steps.dataset_queue import DatasetQueue
from drifting_jax.steps.sample_queue import SampleQueue


def make_queue(
    config: ConfigDict, spec: DataSpec, mesh: Mesh, *, shapes: bool = False
) -> SampleQueue | DatasetQueue:
    """Returns the queue of a run before the first step, or with `shapes` its shapes alone."""
    if config.queue.kind == "dataset":
        make_places = dataset_queue.template if shapes else dataset_queue.init
        return make_places(spec.num_classes, mesh=mesh, flip=config.data.flip)
    make = sample_queue.template if shapes else sample_queue.init
    last_stage = config.encoder.width * 2 ** (len(config.encoder.blocks) - 1)  # its channels
    return make(
        spec.num_classes,
        per_class=config.queue.per_class,
        unconditional=config.queue.unconditional,
        shape=spec.image_shape,
        dtype=jnp.float16 if config.data.latent else jnp.uint8,
        mesh=mesh,
        features=last_stage if config.train.nearest_positives else 0,
    )
