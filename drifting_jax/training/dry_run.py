"""Reports what a run needs, without running it: bytes and FLOPs of a step, and a plan of the run.

`python main.py --config=… --dry_run` compiles the step for the devices at hand. With
`--topology=v5e:8x8` or `--topology=h100` it compiles the real program for that TPU slice or GPU, on
any CPU (pip install "drifting_jax[tpu]" or "drifting_jax[gpu-compile]").
"""

import functools
import math
import sys
from typing import Any

import jax
from jax.sharding import Mesh

from drifting_jax.compiler.flops import product_flops
from drifting_jax.compiler.targets import devices_of
from drifting_jax.config import ConfigDict
from drifting_jax.config.stored import with_values
from drifting_jax.data.sources import data_spec
from drifting_jax.distributed import meshes
from drifting_jax.errors import UserError
from drifting_jax.training import activations, build, encoder, frozen, generator, programs, toy
from drifting_jax.training.compiled_report import compile_step, compiled_lines, gigabytes
from drifting_jax.training.planning import plan_lines
from drifting_jax.training.program import Program
from drifting_jax.training.run_costs import check_price
from drifting_jax.training.tasks import find_task

PyTree = Any

_MAPS = {
    "yes": "kept",
    "host": "kept in the host's memory",
    "no": "computed in each of three passes; train.shared_statistics=previous takes one pass",
}


def dry_run(config: ConfigDict, *, topology: str = "", price_per_hour: float | None = None) -> str:
    """Returns a report on the step of a config, and a plan of the whole run.

    Args:
      config: resolved.
      topology: what to compile for, such as "v5e:8x8", "h100" or "h100:8"; empty for the devices
        at hand.
      price_per_hour: of one device, in any currency; None to leave the price out.

    Raises:
      UserError: the config does not fit the devices, the topology cannot be compiled for, or the
        price is none.
    """
    check_price(price_per_hour)
    devices = devices_of(topology) if topology else None
    print("tracing the step; a large network takes a minute", file=sys.stderr, flush=True)
    mesh = build.make_mesh(config, devices=devices)
    found = program(config, mesh)
    lines = _known_lines(config, found)
    kind = mesh.devices.flat[0].device_kind
    print(f"compiling for {topology or kind}, up to some minutes", file=sys.stderr, flush=True)
    step = compile_step(found, mesh)
    plan = plan_lines(
        config,
        found,
        step,
        assemble=functools.partial(program, mesh=mesh),
        price_per_hour=price_per_hour,
    )
    return "\n".join([*lines, *compiled_lines(step), *plan])


def _known_lines(config: ConfigDict, found: Program) -> list[str]:
    """Returns the lines on what is known of a step before it is compiled."""
    mesh = found.mesh
    lines = [f"{name}: {count:,} parameters" for name, count in parameter_counts(found).items()]
    kind = mesh.devices.flat[0].device_kind
    shape = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    lines.append(f"a step on {mesh.size} {kind} ({shape}), per device:")
    for name, tree in arguments(found).items():
        lines.append(f"  {name:<24}{gigabytes(meshes.bytes_per_device(tree))}")
    if "encoder" in config:
        config = activations.with_remat(config, found.remat)
    keeps = found.keep_maps
    flops = count_flops(config, found.microbatches, keep_maps=keeps != "no") / mesh.size
    lines.append(f"  {'floating-point work':<24}{flops / 1e12:10.3f} TFLOP")
    if found.microbatches > 1:
        lines[-1] += f" in {found.microbatches} microbatches"
        if config.task == "generator":
            whole = count_flops(config, 1) / mesh.size
            lines[-1] += f", {flops / whole:.2f} times that of one"
        if config.train.shared_statistics == "batch" and config.task == "generator":
            lines[-1] += f" (maps: {_MAPS[keeps]})"
    if "encoder" in config:
        of_generator = f"generator {config.model.remat}, " if config.task == "generator" else ""
        lines.append(f"  rematerialisation: {of_generator}encoder {config.encoder.remat}")
    return lines


def program(config: ConfigDict, mesh: Mesh) -> Program:
    """Assembles the step of a config on a mesh, without data, and with no weights but those here.

    Raises:
      UserError: the batch does not fit the mesh, or a network does not fit the data or the config.
    """
    build.check_choices(config)
    if (task := find_task(config.task)) is not None:
        return task.program(config, mesh)
    if config.task == "toy":
        toy.check_batch(config, mesh)
        return programs.toy_program(config, mesh)
    spec = data_spec(config.data)
    build.check_models(config, spec)
    if config.task == "encoder":
        encoder.check_batch(config, mesh)
        return programs.encoder_program(config, spec, mesh)
    generator.check_batch(config, mesh)
    extras, vae = frozen.expected_networks(config)
    return programs.generator_program(config, spec, mesh, extras=extras, vae=vae)


def arguments(found: Program) -> dict[str, PyTree]:
    """Returns the arguments of a program's step, by name, as shapes with shardings."""
    parts = {
        "state": found.carry.state,
        "queue": found.carry.queue,
        "stale negatives": found.carry.negatives,
        "frozen networks": found.frozen,
        "batch": found.batch,
    }
    return {name: tree for name, tree in parts.items() if jax.tree.leaves(tree)}


def parameter_counts(found: Program) -> dict[str, int]:
    """Returns the number of parameters of each network of a program."""
    counts = {found.name: count_parameters(found.carry.state.params)}
    parts = dict(found.frozen)
    of_pixels = parts.pop(build.PIXELS, {})
    if "vae" in of_pixels:
        parts["vae"], of_pixels = of_pixels["vae"], of_pixels["encoder"]
    for name, tree in (parts | of_pixels).items():
        counts[name or "encoder"] = count_parameters(tree)
    return counts


def count_parameters(tree: PyTree) -> int:
    """Returns the number of entries of all arrays of a tree."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def count_flops(config: ConfigDict, microbatches: int, *, keep_maps: bool = True) -> float:
    """Returns the floating-point operations of one step on all devices, products alone.

    The step is traced, not compiled. Loops count with their trips, and so does what the backward
    pass computes again.
    """
    try:
        cpu = jax.local_devices(backend="cpu")[:1]
    except RuntimeError:
        raise UserError(
            "--dry_run counts on the CPU, which JAX_PLATFORMS leaves out: add cpu to it, as in "
            "JAX_PLATFORMS=cuda,cpu"
        ) from None
    if config.task == "generator":
        keeps = "yes" if keep_maps else "no"
        config = with_values(config, {"train.microbatches": microbatches, "train.keep_maps": keeps})
    found = program(config, meshes.make_mesh(1, 1, devices=cpu))
    return product_flops(found.step.trace(found.carry, found.frozen, found.batch).jaxpr)
