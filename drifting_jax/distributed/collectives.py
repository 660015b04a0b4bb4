"""The collectives of a compiled program, read from its text: what its devices send each other."""

import math
import re
from typing import NamedTuple

_BYTES = {"u8": 1, "s8": 1, "pred": 1, "f16": 2, "bf16": 2, "s32": 4, "u32": 4, "f32": 4}
_NAMES = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"


class Collective(NamedTuple):
    """One instruction.

    Attributes:
      name: such as "all-gather".
      types: dtypes that it moves, as in the text: "f32".
      size: bytes of its result; of a reduce-scatter, bytes of its input.
    """

    name: str
    types: frozenset[str]
    size: int


def collectives(compiled: str, devices: int) -> list[Collective]:
    """Returns all collectives in the text of a program that was compiled for so many devices."""
    found = []
    for line in compiled.splitlines():
        match = re.search(rf"= (.*?) ({_NAMES})(-start)?\(", line)
        if not match:
            continue
        shapes = re.findall(r"\b(\w+)\[([\d,]*)\]", match[1])
        shapes = [(t, s) for t, s in shapes if t in _BYTES]
        size = sum(_BYTES[t] * math.prod(int(n) for n in s.split(",") if n) for t, s in shapes)
        whole = size * (devices if match[2] == "reduce-scatter" else 1)
        found.append(Collective(match[2], frozenset(t for t, _ in shapes), whole))
    return found
