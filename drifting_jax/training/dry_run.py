"""What a run would need, without running it: parameters, bytes and FLOPs of a step.

`python main.py --config=… --dry_run` compiles the step for the devices at hand; with
`--topology=v5e:8x8` the TPU compiler, on this CPU, compiles the real program for that slice
(pip install "drifting_jax[tpu]"). Either tells its memory, its FLOPs and its collectives.
"""

import dataclasses
import functools
import math
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from drifting_jax.config import ConfigDict, streams
from drifting_jax.data.sources import DataSpec, data_spec
from drifting_jax.distributed import meshes
from drifting_jax.distributed.collectives import Collective, collectives
from drifting_jax.errors import UserError
from drifting_jax.steps import sample_queue
from drifting_jax.steps.encoder_step import encoder_step
from drifting_jax.steps.generator_step import generator_step
from drifting_jax.training import build, frozen
from drifting_jax.training import encoder as train_mae
from drifting_jax.training import generator as train

PyTree = Any

# GiB of a chip's memory, by jax's name of its kind.
_MEMORY = {"TPU v4": 32, "TPU v5 lite": 16, "TPU v5": 95, "TPU v5p": 95, "TPU v6 lite": 32}


@dataclasses.dataclass(frozen=True)
class Program:
    """A training step with the shapes of its arguments, ready to be lowered.

    Attributes:
      step: jitted.
      arguments: trees of `jax.ShapeDtypeStruct` with shardings, by what they are.
      networks: parameters of each network.
      microbatches: pieces of a batch that are computed one after another.
    """

    step: Callable
    arguments: dict[str, PyTree]
    networks: dict[str, int]
    microbatches: int

    def lower(self) -> jax.stages.Lowered:
        return self.step.lower(*self.arguments.values())


def dry_run(config: ConfigDict, *, topology: str = "") -> str:
    """A report on the step of a generator's or encoder's config.

    Args:
      config: resolved, of task "generator" or "encoder".
      topology: a TPU slice to compile for, such as "v5e:8x8"; empty for the devices at hand.

    Raises:
      UserError: the config does not fit the devices, or the topology cannot be compiled for.
    """
    if config.task == "toy":
        raise UserError("--dry_run is for generators and encoders; a toy runs in under a minute")
    devices = devices_of(topology) if topology else None
    print("tracing the step; a large network takes a minute", file=sys.stderr, flush=True)
    mesh = build.make_mesh(config, devices=devices)
    found = program(config, mesh)
    lines = [f"{name}: {count:,} parameters" for name, count in found.networks.items()]
    kind = mesh.devices.flat[0].device_kind
    shape = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    lines.append(f"a step on {mesh.size} {kind} ({shape}), a device:")
    for name, tree in found.arguments.items():
        lines.append(f"  {name:<24}{_gigabytes(bytes_per_device(tree))}")
    flops = count_flops(config, found.microbatches) / mesh.size
    lines.append(f"  {'floating-point work':<24}{flops / 1e12:10.3f} TFLOP")
    if found.microbatches > 1:
        lines[-1] += f" in {found.microbatches} microbatches"
        if config.task == "generator":
            whole = count_flops(config, 1) / mesh.size
            lines[-1] += f", {flops / whole:.2f} times that of one"
    print(f"compiling for {topology or kind}, up to some minutes", file=sys.stderr, flush=True)
    return "\n".join([*lines, *_compiled(found, mesh)])


def program(config: ConfigDict, mesh: Mesh) -> Program:
    """The step of a config on a mesh.

    Raises:
      UserError: the batch does not fit the mesh, or a network the data.
    """
    spec = data_spec(config.data)
    build.check_models(config, spec)
    if config.task == "encoder":
        return _encoder_program(config, spec, mesh)
    return _generator_program(config, spec, mesh)


def _encoder_program(config: ConfigDict, spec: DataSpec, mesh: Mesh) -> Program:
    train_mae.check_batch(config, mesh)
    init, place = train_mae.state_maker(config, spec, mesh)
    state = meshes.template(init, shardings=place)
    step = functools.partial(
        encoder_step,
        key=streams.stream_key(config, "encoder_steps"),
        model=build.make_encoder(config, spec),
        optimizer=build.encoder_optimizer(config),
        settings=build.make_encoder_step(config),
    )
    where = jax.tree.map(lambda x: x.sharding, state)
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(where, meshes.replicated(mesh)))
    batch = _batch(config, spec, mesh, config.encoder.train.batch_size)
    return Program(
        jitted,
        {"state": state, "batch": batch},
        {"encoder": count_parameters(state.params)},
        config.encoder.train.microbatches,
    )


def _generator_program(config: ConfigDict, spec: DataSpec, mesh: Mesh) -> Program:
    train.check_batch(config, mesh)
    init, place = train.state_maker(config, spec, mesh)
    state = meshes.template(init, shardings=place)
    queue = build.make_queue(config, spec, mesh, make=sample_queue.template)
    extra, vae = frozen.published_sizes(config)
    variables = _frozen(config, spec, mesh, extra, vae)
    step = functools.partial(
        generator_step,
        key=streams.stream_key(config, "generator_steps"),
        model=build.make_generator(config, spec),
        feature_function=build.make_feature_function(config, spec, extra=extra, vae=vae),
        optimizer=build.generator_optimizer(config),
        settings=build.make_generator_step(config, mesh),
    )
    where = jax.tree.map(lambda x: x.sharding, (state, queue))
    jitted = jax.jit(step, donate_argnums=(0, 1), out_shardings=(*where, meshes.replicated(mesh)))
    arguments = {
        "state": state,
        "queue": queue,
        "frozen networks": variables,
        "batch": _batch(
            config, spec, mesh, -(-config.queue.push_per_step // mesh.size) * mesh.size
        ),
    }
    networks = {"generator": count_parameters(state.params)}
    for name, tree in variables.items():
        parts = {"vae": tree["vae"], name: tree["encoder"]} if "vae" in tree else {name: tree}
        networks |= {part or "encoder": count_parameters(x) for part, x in parts.items()}
    return Program(jitted, arguments, networks, build.microbatches(config, mesh))


def _frozen(config: ConfigDict, spec: DataSpec, mesh: Mesh, extra, vae) -> PyTree:
    place = functools.partial(meshes.sharding_for_tree, mesh=mesh, rules=config.mesh.rules)
    shapes = frozen.variables_shapes(config, spec, extra, vae)
    zeros = functools.partial(jax.tree.map, lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return meshes.template(zeros, shardings=place)


def _batch(config: ConfigDict, spec: DataSpec, mesh: Mesh, size: int) -> PyTree:
    dtype = jnp.float16 if config.data.latent else jnp.uint8
    rows = meshes.batch_sharding(mesh)
    return {
        "image": jax.ShapeDtypeStruct((size, *spec.image_shape), dtype, sharding=rows),
        "label": jax.ShapeDtypeStruct((size,), jnp.int32, sharding=rows),
    }


def count_parameters(tree: PyTree) -> int:
    """Entries of all arrays of a tree."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def bytes_per_device(tree: PyTree) -> int:
    """Bytes of a tree of `jax.ShapeDtypeStruct`s with shardings that one device holds."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def count_flops(config: ConfigDict, microbatches: int) -> float:
    """Floating-point operations of one step on all devices, by XLA's count of the traced program.

    Recomputation in the backward pass is counted; a loop's body would be counted once, so blocks
    are traced one by one, and what a generator's microbatch needs is taken times their number (the
    optimizer's share, a few operations a parameter, with it). An encoder's do no further work.
    """
    one_by_one, times = config.copy_and_resolve_references(), 1
    if config.task == "generator":
        times = microbatches
    with one_by_one.unlocked():
        one_by_one.model.scan = False
        one_by_one.encoder.train.microbatches = 1
        one_by_one.train.microbatches = times
    on_one = meshes.make_mesh(1, 1, devices=jax.local_devices(backend="cpu")[:1])
    return times * program(one_by_one, on_one).lower().cost_analysis()["flops"]


def devices_of(topology: str) -> Sequence[jax.Device]:
    """The devices of a TPU slice such as "v5e:8x8", which can be compiled for and nothing else.

    Raises:
      UserError: it is no slice, or libtpu is not installed.
    """
    # There is no TPU to ask.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # a compiler, used by no one alone
    try:
        from jax.experimental import topologies

        # JAX shows the two cores of such a chip as one device, where it is asked for no other way.
        fused = {"chip_config_name": "megacore"} if topology.startswith(("v4:", "v5p:")) else {}
        return topologies.get_topology_desc(platform="tpu", topology_name=topology, **fused).devices
    except Exception as error:  # whatever libtpu raises for a name it does not know
        reason = str(error).strip().partition("\n")[0][:200]
        raise UserError(
            f"--topology={topology} cannot be compiled for ({reason}): use a name such as v5e:8x8 "
            'or v4:2x2x1, with pip install "drifting_jax[tpu]"'
        ) from None


def _compiled(found: Program, mesh: Mesh) -> list[str]:
    """What the compiler says of a step for the devices of a mesh."""
    device, devices = mesh.devices.flat[0], mesh.size
    kind, capacity = device.device_kind, _capacity(mesh)
    try:
        compiled = found.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        used = re.search(r"Used [\d.]+\w+ of [\d.]+\w+ hbm", str(error))
        reason = used[0] if used else str(error).partition("\n")[0]
        return [f"compiled for {kind}: does NOT fit ({reason})"]
    memory = compiled.memory_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    total = held + memory.temp_size_in_bytes
    listed = _listed(collectives(compiled.as_text(), devices))
    note = " (by its compiler; others may need less in bfloat16)" if kind == "cpu" else ""
    lines = [
        f"compiled for {kind}, a device{note}:",
        f"  {'arguments and results':<24}{_gigabytes(held)}",
        f"  {'temporary':<24}{_gigabytes(memory.temp_size_in_bytes)}",
        f"  {'floating-point work':<24}{compiled.cost_analysis()['flops'] / 1e12:10.3f} TFLOP "
        "(loops counted once)",
        f"  collectives: {listed} (loops counted once)",
    ]
    if capacity:
        verdict = "fits" if total <= capacity else "does NOT fit"
        lines.append(f"  {verdict}: {total / 2**30:.2f} of {capacity / 2**30:.0f} GiB")
    else:
        lines.append(f"  {'together':<24}{_gigabytes(total)}")
    return lines


def _listed(found: Sequence[Collective]) -> str:
    """How many collectives of each name there are, and the bytes that all of them move."""
    counts = Counter(one.name for one in found)
    sizes = {name: sum(one.size for one in found if one.name == name) for name in counts}
    words = [f"{counts[name]} {name} of {sizes[name] / 1e6:.1f} MB" for name in sorted(counts)]
    return ", ".join(words) or "none"


def _capacity(mesh: Mesh) -> int:
    """Bytes of the memory of a mesh's devices; 0 where nothing tells."""
    device = mesh.devices.flat[0]
    if device.device_kind in _MEMORY:
        return _MEMORY[device.device_kind] * 2**30
    if device.platform != "gpu":
        return 0
    return (device.memory_stats() or {}).get("bytes_limit", 0)


def _gigabytes(count: int) -> str:
    return f"{count / 2**30:10.3f} GiB"
