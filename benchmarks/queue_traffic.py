"""What the sample queue moves in a step, against a plain gather: read from compiled TPU programs.

    TPU_SKIP_MDS_QUERY=1 python benchmarks/queue_traffic.py --topology=v5e:8x8

Compiles, for a slice that need not be there (pip install -e ".[tpu]"), the push and the draws of
imagenet_pixel (1000 classes of 128 images of 256x256) and prints what a device holds and the bytes
that its collectives take in. The draw goes in rounds: those of one are printed.
"""

import functools
import math

import jax
import jax.numpy as jnp
from absl import app, flags

from drifting_jax.compiler import hlo
from drifting_jax.compiler.collectives import collectives
from drifting_jax.compiler.targets import devices_of
from drifting_jax.distributed import meshes
from drifting_jax.distributed.meshes import bytes_per_device
from drifting_jax.steps import sample_queue

TOPOLOGY = flags.DEFINE_string("topology", "v5e:8x8", "A TPU slice.")
SHAPE, CLASSES, PER_CLASS, ANY = (256, 256, 3), 1000, 128, 1000
ROWS, POSITIVES, UNCONDITIONAL, PUSHED = 128, 128, 32, 128


def moved(program, devices: int) -> tuple[float, float]:
    """(collectives' bytes, temporary bytes a device) of a program in GB."""
    compiled = program.compile()
    size = sum(one.size for one in collectives(hlo.parse(compiled.as_text()), devices))
    return size / 1e9, compiled.memory_analysis().temp_size_in_bytes / 1e9


def main(_) -> None:
    """Compiles and prints."""
    mesh = meshes.make_mesh(1, -1, devices=devices_of(TOPOLOGY.value))
    queue = sample_queue.template(
        CLASSES, per_class=PER_CLASS, unconditional=ANY, shape=SHAPE, dtype=jnp.uint8, mesh=mesh
    )
    everywhere, rows = meshes.replicated(mesh), meshes.batch_sharding(mesh)
    key = jax.ShapeDtypeStruct((), jax.random.key(0).dtype, sharding=everywhere)
    labels = jax.ShapeDtypeStruct((ROWS,), jnp.int32, sharding=everywhere)
    batch = (
        jax.ShapeDtypeStruct((PUSHED, *SHAPE), jnp.uint8, sharding=rows),
        jax.ShapeDtypeStruct((PUSHED,), jnp.int32, sharding=rows),
    )

    @functools.partial(jax.jit, out_shardings=rows)
    def plain(queue, labels, slots):
        return queue.by_class.images[labels[:, None], slots]

    slots = jax.ShapeDtypeStruct((ROWS, POSITIVES), jnp.int32, sharding=everywhere)
    image = math.prod(SHAPE)
    print(f"queue: {bytes_per_device(queue) / 1e9:.2f} GB a device of {mesh.size}")
    for name, program, least in (
        ("push", sample_queue.push.lower(queue, *batch), PUSHED),
        ("draw", sample_queue.draw.lower(queue, key, labels, POSITIVES), ROWS * POSITIVES),
        ("draw_unconditional",
         sample_queue.draw_unconditional.lower(queue, key, labels, UNCONDITIONAL), 0),
        ("plain gather", plain.lower(queue, labels, slots), ROWS * POSITIVES),
    ):  # fmt: skip
        try:
            size, temporary = moved(program, mesh.size)
        except jax.errors.JaxRuntimeError as error:
            print(f"{name}: does not compile: {str(error).splitlines()[0][:160]}")
            continue
        print(
            f"{name}: collectives take in {size:.3f} GB, in a round if there are several; "
            f"samples moved {least * image / 1e9:.3f} GB; temporary {temporary:.3f} GB a device"
        )


if __name__ == "__main__":
    app.run(main)
