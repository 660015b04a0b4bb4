"""ONNX graphs of JAX functions: each primitive of a jaxpr becomes one or a few operators of ONNX.

Only the primitives of our networks are known. The size of the batch may be left open. What does not
depend on the inputs is computed here and stored as a constant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from drifting_jax.compatibility import scan_inputs

OPSET = 18
# Primitives that are one operator on the same inputs, or several in turn.
_SAME = {
    "add": "Add", "cos": "Cos", "div": "Div", "exp": "Exp", "logistic": "Sigmoid", "lt": "Less",
    "max": "Max", "mul": "Mul", "neg": "Neg", "pow": "Pow", "sin": "Sin", "sqrt": "Sqrt",
    "sub": "Sub", "tanh": "Tanh", "rsqrt": "Sqrt Reciprocal", "erf": "Erf",
}  # fmt: skip
_IDENTITIES = ("copy", "stop_gradient")
_REDUCTIONS = {"reduce_sum": "ReduceSum", "reduce_max": "ReduceMax"}
_INNER = ("jaxpr", "call_jaxpr", "fun_jaxpr")  # where a primitive keeps the function that it calls


class UnsupportedError(ValueError):
    """A function uses a primitive, or a form of one, that is not known here."""


def write_onnx(
    path: Path, function: Callable, inputs: Mapping[str, jax.ShapeDtypeStruct], *, output: str
) -> None:
    """Writes a function as an ONNX graph, with its constants in `<path>.data` beside it.

    Args:
      path: of the graph.
      function: of the inputs in their order, to one array. It is traced, not computed.
      inputs: shapes by name; the first axis may be symbolic (`jax.export.symbolic_shape`).
      output: name of the result.

    Raises:
      ImportError: the package onnx is not installed.
      UnsupportedError: the function cannot be written.
    """
    import onnx

    closed = jax.make_jaxpr(function)(*inputs.values())
    graph = _Graph(onnx, next(iter(inputs)), next(iter(inputs.values())).shape[0])
    (result,) = graph.run(closed.jaxpr, closed.consts, list(inputs))
    graph.node("Identity", [result], name=output)
    infos = [graph.info(name, x) for name, x in inputs.items()]
    outputs = [graph.info(output, closed.out_avals[0])]
    found = onnx.helper.make_graph(graph.nodes, "network", infos, outputs, graph.constants)
    opset = [onnx.helper.make_opsetid("", OPSET)]
    model = onnx.helper.make_model(found, opset_imports=opset, producer_name="drifting_jax")
    model.ir_version = 8  # of opset 18's time, so that older runtimes read the file
    data = path.with_name(f"{path.name}.data")
    onnx.save_model(model, str(path), save_as_external_data=True, location=data.name)
    if data.exists():  # there are constants of more than a kilobyte
        data.chmod(path.stat().st_mode)  # onnx lets nobody else read it


class _Graph:
    """The nodes and constants so far. A value is the name of a tensor, or an array if constant."""

    def __init__(self, onnx: Any, batch_input: str, batch: Any) -> None:
        self.onnx, self.batch_input, self.batch = onnx, batch_input, batch
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self._stored: dict[int, tuple[str, np.ndarray]] = {}

    def node(self, kind: str, inputs: Sequence[Any], *, name: str = "", **attributes: Any) -> str:
        """Adds an operator; returns the name of its result."""
        name, names = name or f"t{len(self.nodes)}", [self._named(x) for x in inputs]
        self.nodes.append(self.onnx.helper.make_node(kind, names, [name], **attributes))
        return name

    def info(self, name: str, x: Any) -> Any:
        """The name, dtype and shape of an input or output."""
        shape = [size if isinstance(size, int) else str(size) for size in x.shape]
        return self.onnx.helper.make_tensor_value_info(name, self.dtype(x.dtype), shape)

    def dtype(self, dtype: Any) -> int:
        """The number of a dtype in ONNX."""
        return self.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))

    def run(self, jaxpr: Any, consts: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
        """Adds the operators of a jaxpr; returns its results."""
        known: dict[Any, Any] = dict(zip(jaxpr.invars, arguments, strict=True))
        known |= zip(jaxpr.constvars, map(np.asarray, consts), strict=True)

        def value(var: Any) -> Any:
            return np.asarray(var.val, var.aval.dtype) if hasattr(var, "val") else known[var]

        for equation in jaxpr.eqns:
            found = self._equation(equation, [value(var) for var in equation.invars])
            known |= zip(equation.outvars, found, strict=True)
        return [value(var) for var in jaxpr.outvars]

    def _equation(self, equation: Any, inputs: list[Any]) -> list[Any]:
        name, params = equation.primitive.name, equation.params
        if name == "platform_index":  # the branch for all platforms without one of their own
            return [np.int32(len(params["platforms"]) - 1)]
        if name == "cond" and not isinstance(inputs[0], str):
            branch = params["branches"][int(inputs[0])]
            return self.run(branch.jaxpr, branch.consts, inputs[1:])
        if name == "scan":
            return self._scan(params, inputs)
        inner = next((params[key] for key in _INNER if key in params), None)
        if inner is not None:
            return self.run(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), inputs)
        if name in _IDENTITIES:
            return inputs
        sizes = [size for var in equation.outvars for size in var.aval.shape]
        if not any(isinstance(x, str) for x in inputs) and all(isinstance(n, int) for n in sizes):
            found = equation.primitive.bind(*inputs, **params)
            return [*map(np.asarray, found if equation.primitive.multiple_results else [found])]
        if name in _SAME:
            for kind in _SAME[name].split():
                inputs = [self.node(kind, inputs)]
            return inputs
        if (rule := getattr(self, f"_{name}", None)) is None:
            raise UnsupportedError(f"the primitive {name} has no ONNX operator here")
        found = rule(equation, *inputs)
        return found if isinstance(found, list) else [found]

    def _scan(self, params: Mapping[str, Any], inputs: list[Any]) -> list[Any]:
        """A loop of known length over constants, one round after another."""
        consts, carry, xs = scan_inputs(params, inputs)
        if len(params["jaxpr"].out_avals) > len(carry) or any(isinstance(x, str) for x in xs):
            raise UnsupportedError("a scan must run over constants and return its carry alone")
        for i in range(params["length"]):
            arguments = [*consts, *carry, *(x[i] for x in xs)]
            carry = self.run(params["jaxpr"].jaxpr, params["jaxpr"].consts, arguments)
        return carry

    # The rules below are named after primitives: (equation, inputs) -> the result, or several.

    def _square(self, _: Any, x: Any) -> str:
        return self.node("Mul", [x, x])

    def _erfc(self, equation: Any, x: Any) -> str:
        one = np.ones((), equation.outvars[0].aval.dtype)
        return self.node("Sub", [one, self.node("Erf", [x])])

    def _select_n(self, _: Any, which: Any, no: Any, yes: Any) -> str:
        return self.node("Where", [which, yes, no])

    def _convert_element_type(self, equation: Any, x: Any) -> str:
        return self.node("Cast", [x], to=self.dtype(equation.params["new_dtype"]))

    def _transpose(self, equation: Any, x: Any) -> str:
        return self.node("Transpose", [x], perm=list(equation.params["permutation"]))

    def _reshape(self, equation: Any, x: Any) -> str:
        sizes = [n if isinstance(n, int) else -1 for n in equation.outvars[0].aval.shape]
        if sizes.count(-1) > 1:
            raise UnsupportedError(f"a shape may hold the batch once; found {sizes}")
        return self.node("Reshape", [x, np.asarray(sizes, np.int64)])

    _squeeze = _reshape

    def _broadcast_in_dim(self, equation: Any, x: Any, *_: Any) -> str:
        given, shape = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
        sizes = [1] * len(shape)
        for place, size in zip(equation.params["broadcast_dimensions"], given, strict=True):
            sizes[place] = size if isinstance(size, int) else -1
        spread = self.node("Reshape", [x, np.asarray(sizes, np.int64)])
        return self.node("Expand", [spread, self._shape(shape)])

    def _slice(self, equation: Any, x: Any) -> str:
        params, shape = equation.params, equation.invars[0].aval.shape
        steps = params["strides"] or [1] * len(shape)
        ends = [
            n if isinstance(n, int) else np.iinfo(np.int64).max for n in params["limit_indices"]
        ]
        bounds = (params["start_indices"], ends, range(len(shape)), steps)
        return self.node("Slice", [x, *(np.asarray(tuple(x), np.int64) for x in bounds)])

    def _concatenate(self, equation: Any, *xs: Any) -> str:
        return self.node("Concat", xs, axis=int(equation.params["dimension"]))

    def _pad(self, equation: Any, x: Any, value: Any) -> str:
        before, after, between = zip(*equation.params["padding_config"], strict=True)
        if any(between):
            raise UnsupportedError("padding between entries has no ONNX operator here")
        return self.node("Pad", [x, np.asarray(before + after, np.int64), value])

    def _split(self, equation: Any, x: Any) -> list[str]:
        sizes, axis = equation.params["sizes"], equation.params["axis"]
        pairs = zip(np.cumsum(sizes), sizes, strict=True)
        bounds = [(end - size, end, axis) for end, size in pairs]
        return [self.node("Slice", [x, *np.asarray(each)[:, None]]) for each in bounds]

    def _unstack(self, equation: Any, x: Any) -> list[str]:
        """The entries of an axis, which jax 0.12 has for a loop over an array."""
        axis, count = int(equation.params["axis"]), len(equation.outvars)
        return [self.node("Gather", [x, np.asarray(i, np.int64)], axis=axis) for i in range(count)]

    def _reduce(self, equation: Any, x: Any) -> str:
        axes = np.asarray(equation.params["axes"], np.int64)
        return self.node(_REDUCTIONS[equation.primitive.name], [x, axes], keepdims=0)

    _reduce_sum = _reduce_max = _reduce

    def _dot_general(self, equation: Any, x: Any, y: Any) -> str:
        (of_x, of_y), (batch_x, batch_y) = equation.params["dimension_numbers"]
        ranks = [len(var.aval.shape) for var in equation.invars]
        if not batch_x and ranks[1] == 2 and tuple(of_y) == (0,) and of_x == (ranks[0] - 1,):
            return self.node("MatMul", [x, y])
        first, second = list("abcdefgh"[: ranks[0]]), list("ijklmnop"[: ranks[1]])
        for i, j in zip((*of_x, *batch_x), (*of_y, *batch_y), strict=True):
            second[j] = first[i]
        rest = [first[i] for i in range(ranks[0]) if i not in (*of_x, *batch_x)]
        rest += [second[j] for j in range(ranks[1]) if j not in (*of_y, *batch_y)]
        parts = map("".join, (first, second, [*(first[i] for i in batch_x), *rest]))
        return self.node("Einsum", [x, y], equation="{},{}->{}".format(*parts))

    def _gather(self, equation: Any, x: Any, indices: Any, *_: Any) -> str:
        """A part whose place is known, or entries along some axes; indices must be in range."""
        numbers, (given, of) = equation.params["dimension_numbers"], equation.invars[:2]
        axes, sizes = numbers.start_index_map, list(equation.params["slice_sizes"])
        batch, rank = len(of.aval.shape) - 1, len(equation.outvars[0].aval.shape)
        others = [i for i in range(len(sizes)) if i not in axes]
        whole = all(given.aval.shape[i] == sizes[i] for i in others)
        if whole and not batch and not isinstance(indices, str):
            starts = np.asarray(indices, np.int64)
            ends = starts + [sizes[i] for i in axes]
            return self._reshape(equation, self.node("Slice", [x, starts, ends, np.int64(axes)]))
        if whole and numbers.collapsed_slice_dims == axes and not numbers.operand_batching_dims:
            places = self.node("Cast", [indices], to=self.dtype(np.int64))
            found = self.node("GatherND", [self._transposed(x, [*axes, *others]), places])
            # The axes of the indices come first there, those of x that remain after them.
            first, last = iter(range(batch)), iter(range(batch, rank))
            order = [next(last if i in numbers.offset_dims else first) for i in range(rank)]
            return self._transposed(found, order)
        raise UnsupportedError(f"gather with {numbers} has no ONNX operator here")

    def _transposed(self, x: Any, axes: Sequence[int]) -> Any:
        return x if list(axes) == sorted(axes) else self.node("Transpose", [x], perm=list(axes))

    def _conv_general_dilated(self, equation: Any, x: Any, kernel: Any) -> str:
        params = equation.params
        x_spec, kernel_spec, out_spec = params["dimension_numbers"]
        if set(params["lhs_dilation"]) != {1} or params["batch_group_count"] != 1:
            raise UnsupportedError("a transposed convolution has no ONNX operator here")
        x = self.node("Transpose", [x], perm=list(x_spec))
        made = self.node(
            "Conv",
            [x, self.node("Transpose", [kernel], perm=list(kernel_spec))],
            strides=list(params["window_strides"]),
            dilations=list(params["rhs_dilation"]),
            group=params["feature_group_count"],
            pads=[side[i] for i in (0, 1) for side in params["padding"]],
        )
        return self.node("Transpose", [made], perm=[int(i) for i in np.argsort(out_spec)])

    def _shape(self, shape: Sequence[Any]) -> Any:
        """A shape as an array, or as a tensor that holds the size of the batch."""
        if all(isinstance(n, int) for n in shape):
            return np.asarray(shape, np.int64)
        if not all(isinstance(size, int) or size == self.batch for size in shape):
            raise UnsupportedError(f"the sizes {shape} are more than numbers and the batch")
        batch = self.node("Shape", [self.batch_input], start=0, end=1)
        parts = [np.asarray([n], np.int64) if isinstance(n, int) else batch for n in shape]
        return self.node("Concat", parts, axis=0)

    def _named(self, x: Any) -> str:
        """The name of a value; a constant is stored once."""
        if isinstance(x, str):
            return x
        if id(x) not in self._stored:
            name = f"c{len(self.constants)}"
            self.constants.append(self.onnx.numpy_helper.from_array(np.asarray(x), name))
            self._stored[id(x)] = name, x  # with the array, so that its id stays its own
        return self._stored[id(x)][0]
