"""Reports what a run needs, without running it: parameters, bytes and FLOPs of a step.

`python main.py --config=… --dry_run` compiles the step for the devices at hand. With
`--topology=v5e:8x8` the TPU compiler compiles the real program for that slice, on any CPU (pip
install "drifting_jax[tpu]"). Both report memory, FLOPs and collectives.
"""

import math
import os
import re
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from drifting_jax.config import ConfigDict
from drifting_jax.data.sources import data_spec
from drifting_jax.distributed import meshes
from drifting_jax.distributed.collectives import Collective, collectives
from drifting_jax.errors import UserError
from drifting_jax.training import build, encoder, frozen, generator, programs, toy
from drifting_jax.training.programs import Program

PyTree = Any

# GiB of a chip's memory, by jax's name of its kind.
_MEMORY = {"TPU v4": 32, "TPU v5 lite": 16, "TPU v5": 95, "TPU v5p": 95, "TPU v6 lite": 32}


def dry_run(config: ConfigDict, *, topology: str = "") -> str:
    """Returns a report on the step of a config.

    Args:
      config: resolved.
      topology: a TPU slice to compile for, such as "v5e:8x8"; empty for the devices at hand.

    Raises:
      UserError: the config does not fit the devices, or the topology cannot be compiled for.
    """
    devices = devices_of(topology) if topology else None
    print("tracing the step; a large network takes a minute", file=sys.stderr, flush=True)
    mesh = build.make_mesh(config, devices=devices)
    found = program(config, mesh)
    lines = [f"{name}: {count:,} parameters" for name, count in parameter_counts(found).items()]
    kind = mesh.devices.flat[0].device_kind
    shape = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    lines.append(f"a step on {mesh.size} {kind} ({shape}), per device:")
    for name, tree in arguments(found).items():
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
    """Assembles the step of a config on a mesh, without data and without published weights.

    Raises:
      UserError: the batch does not fit the mesh, or a network does not fit the data.
    """
    build.check_choices(config)
    if config.task == "toy":
        toy.check_batch(config, mesh)
        return programs.toy_program(config, mesh)
    spec = data_spec(config.data)
    build.check_models(config, spec)
    if config.task == "encoder":
        encoder.check_batch(config, mesh)
        return programs.encoder_program(config, spec, mesh)
    generator.check_batch(config, mesh)
    extra, vae = frozen.published_sizes(config)
    return programs.generator_program(config, spec, mesh, extra=extra, vae=vae)


def arguments(found: Program) -> dict[str, PyTree]:
    """Returns the arguments of a program's step, by name, as shapes with shardings."""
    parts = {
        "state": found.carry.state,
        "queue": found.carry.queue,
        "frozen networks": found.frozen,
        "batch": found.batch,
    }
    return {name: tree for name, tree in parts.items() if jax.tree.leaves(tree)}


def parameter_counts(found: Program) -> dict[str, int]:
    """Returns the number of parameters of each network of a program."""
    counts = {found.name: count_parameters(found.carry.state.params)}
    for name, tree in found.frozen.items():
        parts = {"vae": tree["vae"], name: tree["encoder"]} if "vae" in tree else {name: tree}
        counts |= {part or "encoder": count_parameters(x) for part, x in parts.items()}
    return counts


def count_parameters(tree: PyTree) -> int:
    """Returns the number of entries of all arrays of a tree."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def bytes_per_device(tree: PyTree) -> int:
    """Returns the bytes that one device holds of a tree of shapes with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def count_flops(config: ConfigDict, microbatches: int) -> float:
    """Returns the floating-point operations of one step on all devices, by XLA's count.

    Recomputation in the backward pass is counted. XLA counts the body of a loop once, so blocks are
    traced one by one, and the work of one of a generator's microbatches is multiplied by their
    number (with the optimizer's share, a few operations a parameter). An encoder's microbatches do
    no further work.
    """
    one_by_one, times = config.copy_and_resolve_references(), 1
    on_one = meshes.make_mesh(1, 1, devices=jax.local_devices(backend="cpu")[:1])
    if config.task == "toy":
        return _flops(program(one_by_one, on_one).lower())
    if config.task == "generator":
        times = microbatches
    with one_by_one.unlocked():
        one_by_one.model.scan = False
        one_by_one.encoder.train.microbatches = 1
        one_by_one.train.microbatches = times
    return times * _flops(program(one_by_one, on_one).lower())


def _flops(found: jax.stages.Lowered | jax.stages.Compiled) -> float:
    costs = found.cost_analysis()
    assert costs is not None  # a backend may not count; those of CPUs, GPUs and TPUs do
    return costs["flops"]


def devices_of(topology: str) -> Sequence[jax.Device]:
    """Returns the devices of a TPU slice such as "v5e:8x8", which exist for the compiler alone.

    Raises:
      UserError: there is no such slice, or libtpu is not installed.
    """
    # Without these, libtpu would look for a TPU.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # a compiler, used by no one alone
    try:
        from jax.experimental import topologies

        # A run sees the two cores of such a chip as one device; so must the compiler.
        fused = {"chip_config_name": "megacore"} if topology.startswith(("v4:", "v5p:")) else {}
        return topologies.get_topology_desc(platform="tpu", topology_name=topology, **fused).devices
    except Exception as error:  # whatever libtpu raises for a name it does not know
        reason = str(error).strip().partition("\n")[0][:200]
        raise UserError(
            f"--topology={topology} cannot be compiled for ({reason}): use a name such as v5e:8x8 "
            'or v4:2x2x1, with pip install "drifting_jax[tpu]"'
        ) from None


def _compiled(found: Program, mesh: Mesh) -> list[str]:
    """Returns the lines on a step that is compiled for the devices of a mesh."""
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
    memory, text = compiled.memory_analysis(), compiled.as_text()
    assert memory is not None and text is not None  # likewise
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    total = held + memory.temp_size_in_bytes
    listed = _listed(collectives(text, devices))
    note = " (by its compiler; others may need less in bfloat16)" if kind == "cpu" else ""
    lines = [
        f"compiled for {kind}, a device{note}:",
        f"  {'arguments and results':<24}{_gigabytes(held)}",
        f"  {'temporary':<24}{_gigabytes(memory.temp_size_in_bytes)}",
        f"  {'floating-point work':<24}{_flops(compiled) / 1e12:10.3f} TFLOP (loops counted once)",
        f"  collectives: {listed} (loops counted once)",
    ]
    if capacity:
        verdict = "fits" if total <= capacity else "does NOT fit"
        lines.append(f"  {verdict}: {total / 2**30:.2f} of {capacity / 2**30:.0f} GiB")
    else:
        lines.append(f"  {'together':<24}{_gigabytes(total)}")
    return lines


def _listed(found: Sequence[Collective]) -> str:
    """Returns the number of collectives of each name and the bytes that they move together."""
    counts = Counter(one.name for one in found)
    sizes = {name: sum(one.size for one in found if one.name == name) for name in counts}
    words = [f"{counts[name]} {name} of {sizes[name] / 1e6:.1f} MB" for name in sorted(counts)]
    return ", ".join(words) or "none"


def _capacity(mesh: Mesh) -> int:
    """Returns the bytes of memory of one device of a mesh; 0 if unknown."""
    device = mesh.devices.flat[0]
    if device.device_kind in _MEMORY:
        return _MEMORY[device.device_kind] * 2**30
    if device.platform != "gpu":
        return 0
    return (device.memory_stats() or {}).get("bytes_limit", 0)


def _gigabytes(count: int) -> str:
    return f"{count / 2**30:10.3f} GiB"
