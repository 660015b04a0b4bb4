"""The text of a compiled program (XLA's HLO): its instructions, and how often each one runs."""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterator
from functools import cached_property

_BYTES = {
    **dict.fromkeys(("pred", "s8", "u8", "f8e4m3fn", "f8e5m2"), 1),
    **dict.fromkeys(("s16", "u16", "f16", "bf16"), 2),
    **dict.fromkeys(("s32", "u32", "f32"), 4),
    **dict.fromkeys(("s64", "u64", "f64", "c64"), 8),
    "c128": 16,
}
_SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*?)(?:^|\s)([a-z][\w\-]*)\((.*)$")


@dataclasses.dataclass(frozen=True)
class Shape:
    """dtype as HLO writes it ("bf16"), and dimensions."""

    dtype: str
    dimensions: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.dimensions)

    @property
    def num_bytes(self) -> int:
        return self.size * _BYTES[self.dtype]


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction of a computation.

    Attributes:
      name, opcode: such as "dot.3" and "dot".
      results: the shapes of its result; several for a tuple.
      operands: names of instructions of the same computation.
      attributes: the text after the operands.
      is_root: whether its result is that of the computation.
    """

    name: str
    opcode: str
    results: tuple[Shape, ...]
    operands: tuple[str, ...]
    attributes: str
    is_root: bool

    @property
    def result_bytes(self) -> int:
        return sum(shape.num_bytes for shape in self.results)

    def called(self, attribute: str) -> str:
        """The computation that an attribute such as "body" names; "" without it."""
        match = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.attributes)
        return match[1] if match else ""

    def numbers(self, attribute: str) -> tuple[int, ...]:
        """The numbers of an attribute such as "lhs_contracting_dims={1}" or "…":["1"]."""
        match = re.search(rf'\b{attribute}"?[=:][{{\[]([^}}\]]*)[}}\]]', self.attributes)
        return tuple(int(n) for n in re.findall(r"\d+", match[1])) if match else ()


Computation = dict[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Module:
    """A compiled program.

    Attributes:
      computations: {name: its instructions by name, in their order}.
      entry: the computation that runs first.
    """

    computations: dict[str, Computation]
    entry: str

    @cached_property
    def times(self) -> dict[str, int]:
        """{computation: how often it runs}.

        A loop of unknown length counts with the largest number of its condition, or once. Of a
        conditional all branches count. Conditions of loops and computations inside fusions are not
        listed.
        """
        found: Counter[str] = Counter()

        def walk(name: str, times: int) -> None:
            found[name] += times
            for one in self.computations[name].values():
                for inner, passes in self._calls(one):
                    walk(inner, times * passes)

        walk(self.entry, 1)
        return dict(found)

    def executed(self) -> Iterator[tuple[Computation, Instruction, int]]:
        """All instructions that run, with their computation and how often they run."""
        for name, times in self.times.items():
            for one in self.computations[name].values():
                yield self.computations[name], one, times

    def fusion(self, one: Instruction) -> Computation:
        """The instructions inside a fusion; empty for another instruction."""
        return self.computations.get(one.called("calls"), {}) if one.opcode == "fusion" else {}

    def _calls(self, one: Instruction) -> list[tuple[str, int]]:
        if one.opcode == "while":
            return [(one.called("body"), self._passes(one))]
        if one.opcode in ("call", "async-start"):
            inner = one.called("to_apply") or one.called("calls")
            return [(inner, 1)] if inner in self.computations else []
        if one.opcode == "conditional":
            names = re.search(r"branch_computations=\{([^}]*)\}", one.attributes)
            found = re.findall(r"%?([\w.\-]+)", names[1]) if names else []
            found += [one.called("true_computation"), one.called("false_computation")]
            return [(name, 1) for name in found if name in self.computations]
        return []

    def _passes(self, loop: Instruction) -> int:
        """Passes of a loop, as the compiler notes them, or the largest number of its condition."""
        noted = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
        if noted:
            return int(noted[1])
        pending, constants = [loop.called("condition")], [1]
        while pending:
            for one in self.computations.get(pending.pop(), {}).values():
                inner = one.called("calls") or one.called("to_apply")
                pending += [inner] if inner else []
                if one.opcode == "constant" and one.results and one.results[0].dtype == "s32":
                    constants += [int(n) for n in re.findall(r"^\d+$", one.operands[0])]
        return max(constants)


def parse(text: str) -> Module:
    """Returns the program whose text `compiled.as_text()` gives, of a CPU, GPU or TPU."""
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            current = computations.setdefault(header[2], {})
            entry = header[2] if header[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and (match := _INSTRUCTION.match(line)):
            root, name, result, opcode, rest = match.groups()
            inside, attributes = _split(rest)
            # A constant has its value in place of operands.
            operands = [inside] if opcode == "constant" else re.findall(r"%([\w.\-]+)", inside)
            current[name] = Instruction(
                name, opcode, _shapes(result), tuple(operands), attributes, bool(root)
            )
    return Module(computations, entry)


def _split(rest: str) -> tuple[str, str]:
    """The text inside an instruction's parentheses, and the text after them."""
    depth = 1
    for i, character in enumerate(rest):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if not depth:
            return rest[:i], rest[i + 1 :]
    return rest, ""


def _shapes(text: str) -> tuple[Shape, ...]:
    return tuple(
        Shape(dtype, tuple(int(n) for n in sizes.split(",") if n))
        for dtype, sizes in _SHAPE.findall(text)
        if dtype in _BYTES
    )
