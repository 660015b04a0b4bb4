"""Floating-point operations of a traced program: those of matrix products and convolutions."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr


def product_flops(jaxpr: ClosedJaxpr | Jaxpr) -> float:
    """Returns the operations of all products, two for each multiply-add.

    The body of a `scan` counts once for each of its trips, and what a program computes again in a
    backward pass counts again. Of a `cond` the costliest branch counts, and of a `while`, whose
    trips are not known, one trip.
    """
    if isinstance(jaxpr, ClosedJaxpr):
        jaxpr = jaxpr.jaxpr
    return sum(_flops(equation) for equation in jaxpr.eqns)


def _flops(equation: Any) -> float:
    name = equation.primitive.name
    if name == "dot_general":
        left = equation.invars[0].aval.shape
        contracting = equation.params["dimension_numbers"][0][0]
        size = math.prod(equation.outvars[0].aval.shape)
        return 2.0 * size * math.prod(left[axis] for axis in contracting)
    if name == "conv_general_dilated":
        images, kernel = (x.aval.shape for x in equation.invars)
        return _convolution(images, kernel, equation.params)
    inner = [product_flops(x) for x in _inner(equation.params)]
    if name == "cond":
        return max(inner)
    return sum(inner) * (equation.params["length"] if name == "scan" else 1)


def _convolution(
    images: tuple[int, ...], kernel: tuple[int, ...], parameters: dict[str, Any]
) -> float:
    """Without the products with padding, and with the zeros between the entries of a gradient."""
    numbers = parameters["dimension_numbers"]
    samples = images[numbers.lhs_spec[0]] / parameters["batch_group_count"]
    found = 2.0 * samples * kernel[numbers.rhs_spec[0]] * kernel[numbers.rhs_spec[1]]
    for stride, padding, spread, dilation, image_axis, kernel_axis in zip(
        parameters["window_strides"],
        parameters["padding"],
        parameters["lhs_dilation"],
        parameters["rhs_dilation"],
        numbers.lhs_spec[2:],
        numbers.rhs_spec[2:],
        strict=True,
    ):
        last = (images[image_axis] - 1) * spread
        reach = (kernel[kernel_axis] - 1) * dilation
        outputs = (last + sum(padding) - reach) // stride + 1
        starts = np.arange(outputs)[:, None] * stride - padding[0]
        read = starts + np.arange(kernel[kernel_axis])[None] * dilation
        found *= np.sum((read >= 0) & (read <= last) & (read % spread == 0))
    return float(found)


def _inner(parameters: dict[str, Any]) -> Iterator[ClosedJaxpr | Jaxpr]:
    """The programs inside an operation."""
    for value in parameters.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            if isinstance(one, ClosedJaxpr | Jaxpr):
                yield one
