"""The collectives of a compiled program: what its devices send each other."""

from typing import NamedTuple

from drifting_jax.compiler.hlo import Module

_NAMES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


class Collective(NamedTuple):
    """One instruction.

    Attributes:
      name: such as "all-gather".
      types: dtypes that it moves, as in the text: "f32".
      size: bytes of its result; of a reduce-scatter, bytes of its input.
      times: how often it runs.
    """

    name: str
    types: frozenset[str]
    size: int
    times: int


def collectives(module: Module, devices: int) -> list[Collective]:
    """Returns all collectives of a program that was compiled for so many devices."""
    found = []
    for _, kernel, times in module.executed():
        for one in (kernel, *module.fusion(kernel).values()):  # TPUs fuse them
            name = one.opcode.removesuffix("-start")
            if name in _NAMES:
                results = one.results
                if one.opcode in ("all-gather-start", "collective-permute-start"):
                    results = results[len(results) // 2 :]  # the inputs come first
                size = sum(shape.num_bytes for shape in results)
                whole = size * (devices if name == "reduce-scatter" else 1)
                types = frozenset(shape.dtype for shape in results)
                found.append(Collective(name, types, whole, times))
    return found
