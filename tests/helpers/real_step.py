"""Steps of a whole tiny config, pixels or latents, on any mesh: for tests and their processes.

As a program it is one process of a job told by its environment: `real_step.py KIND STEPS OUT.npz`.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import tiny_config

from drifting_jax.config import resolve
from drifting_jax.config.defaults import FSDP_RULES
from drifting_jax.data.sources import DataSpec
from drifting_jax.distributed import meshes, processes, transfer
from drifting_jax.steps import sample_queue
from drifting_jax.training import programs
from drifting_jax.training.program import Carry

SHAPES = {"pixel": (8, 8, 1), "latent": (8, 8, 4)}
CLASSES, PUSHED = 10, 16


def config(kind):
    found = tiny_config.get_config()
    found.mesh.rules = FSDP_RULES
    found.train.labels_per_step = found.train.generated_per_label = 8
    found.train.positives_per_label = 8
    found.train.unconditional_per_label = 8
    found.optim.warmup_steps = 2
    found.drift.temperatures = (0.2, 1.0)  # 0.05 makes of the rounding of a distance 20 times that
    found.model.scan = True
    if kind == "latent":
        found.data.source, found.data.latent, found.data.image_size = "imagenet", True, 64
    return resolve(found)


def samples(kind, count, seed):
    """Random real samples and their labels, the same on every mesh."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(count) % CLASSES).astype(np.int32)
    if kind == "latent":
        return rng.standard_normal((count, *SHAPES[kind])).astype(np.float16), labels
    return rng.integers(0, 256, (count, *SHAPES[kind]), dtype=np.uint8), labels


def scattered(shapes, seed):
    """Parameters that are nowhere zero: as initialised, the generator makes one image."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.float32(rng.normal(0, 0.2, x.shape)), shapes)


def smooth(encoder):
    """The encoder with its ReLUs' inputs well above zero.

    Where one lies within rounding of zero, another order of sums takes the other side of the kink:
    another gradient, by a thousandth.
    """

    def away(path, leaf):
        return leaf + 6 if jax.tree_util.keystr(path).endswith("['norm']['bias']") else leaf

    return jax.tree_util.tree_map_with_path(away, encoder)


def run(kind, mesh, steps):
    """State and metrics of the first step, the last state, and all curves: {path: array}."""
    c, spec = config(kind), DataSpec(SHAPES[kind], CLASSES)
    program = programs.generator_program(c, spec, mesh)
    carry = program.first_carry()
    shardings = jax.tree.map(lambda x: x.sharding, carry.state.params)
    params = jax.device_put(scattered(carry.state.params, 0), shardings)
    encoder = programs.encoder_program(c, spec, mesh).first_carry().state.params
    frozen = {"": {"params": smooth(encoder)}}
    queue = carry.queue
    for seed in range(5):
        queue = sample_queue.push(queue, *samples(kind, 32, seed))
    carry = Carry(carry.state.replace(params=params), queue)
    curves = []
    share = PUSHED // jax.process_count()
    mine = slice(jax.process_index() * share, (jax.process_index() + 1) * share)
    for number in range(steps):
        image, label = samples(kind, PUSHED, 100 + number)
        batch = transfer.global_batch(mesh, {"image": image[mine], "label": label[mine]})
        carry, report = program.step(carry, frozen, batch)
        curves.append(transfer.fetch(report.metrics))
        if number == 0:
            first = {"state": transfer.fetch(carry.state), "metrics": curves[0]}
    curves = jax.tree.map(lambda *x: np.stack(x), *curves)
    found = jax.tree_util.tree_leaves_with_path(
        {"first": first, "last": {"state": transfer.fetch(carry.state), "metrics": curves}}
    )
    return {jax.tree_util.keystr(path): leaf for path, leaf in found}


if __name__ == "__main__":
    processes.initialize()
    np.savez(sys.argv[3], **run(sys.argv[1], meshes.make_mesh(4, 2), int(sys.argv[2])))
