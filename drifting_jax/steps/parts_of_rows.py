"""Class rows whose samples are computed in parts: all of a row need not fit the memory at once.

The drift of a sample depends on all samples of its row, but its features on itself alone. So a
first pass makes the features of all samples, part by part, and keeps their maps; the loss gives the
gradient with respect to the features (36); a second pass makes the generated samples of each part
again and pulls its share of that gradient back to the parameters. This is gradient caching within
a row. The numbers are those of whole rows, up to the order of sums.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from drifting_jax.distributed import class_rows
from drifting_jax.steps.generator_networks import Networks
from drifting_jax.steps.generator_rows import Rows

PyTree = Any
Features = dict[str, jax.Array]  # {name: [c, n, t, d]}
# {group: features} -> loss [], gradient with respect to the generated features, statistics.
Loss = Callable[[Mapping[str, Features]], tuple[jax.Array, Features, PyTree]]


def loss_and_gradients(
    loss: Loss, params: PyTree, rows: Rows, networks: Networks, parts: int
) -> tuple[tuple[tuple[jax.Array, PyTree], PyTree], Features]:
    """Returns ((loss, statistics), gradients), and the features of the generated samples.

    Args:
      loss: of the features of all samples of all rows.
      params, rows, networks, parts: as in `features_in_parts`.
    """
    keys = in_parts(rows.input_keys, parts)
    features = features_in_parts(params, rows, networks, parts)
    value, cotangents, statistics = loss(features)

    def gradient_of_part(piece: tuple[jax.Array, Features]) -> PyTree:
        keys, cotangents = piece

        def generated_features(params: PyTree) -> Features:
            generated = {"generated": networks.generate(params, rows, keys)}
            return networks.features(networks.maps(generated))["generated"]

        return jax.vjp(generated_features, params)[1](cotangents)[0]

    gradients = class_rows.sum_over_microbatches(
        gradient_of_part, (keys, in_parts(cotangents, parts))
    )
    return ((value, statistics), gradients), features["generated"]


def features_in_parts(
    params: PyTree, rows: Rows, networks: Networks, parts: int
) -> dict[str, Features]:
    """Returns {group: features} of all samples of all rows, made part by part.

    Args:
      params: of the generator.
      rows: all rows of a step.
      networks: of the step.
      parts: how many; it divides the samples of every group of a row.
    """
    real = {"positive": rows.positive, "unconditional": rows.unconditional}

    def maps_of_part(piece: tuple[jax.Array, jax.Array | None, dict[str, jax.Array]]):
        keys, fresh_keys, real = piece
        groups = {"generated": networks.generate(params, rows, keys)}
        groups |= {group: class_rows.to_float(x) for group, x in real.items()}
        if fresh_keys is not None:
            groups["fresh"] = networks.generate(params, rows, fresh_keys)
        return networks.maps(groups)

    pieces = in_parts((rows.input_keys, rows.fresh_keys, _without_none(real)), parts)
    return networks.features(whole(jax.lax.map(maps_of_part, pieces)))


def in_parts(of_samples: PyTree, parts: int) -> PyTree:
    """Splits arrays [c, n, ...] into [parts, c, n / parts, ...].

    Part j holds the samples j, j + parts, …, so that each sample stays on its device.
    """

    def split(x: jax.Array) -> jax.Array:
        c, n = x.shape[:2]
        return jnp.moveaxis(x.reshape(c, n // parts, parts, *x.shape[2:]), 2, 0)

    return jax.tree.map(split, of_samples)


def whole(of_parts: PyTree) -> PyTree:
    """[parts, c, n / parts, ...] -> [c, n, ...], the inverse of `in_parts`."""

    def join(x: jax.Array) -> jax.Array:
        parts, c, n = x.shape[:3]
        return jnp.moveaxis(x, 0, 2).reshape(c, n * parts, *x.shape[3:])

    return jax.tree.map(join, of_parts)


def _without_none(groups: Mapping[str, jax.Array | None]) -> dict[str, jax.Array]:
    return {group: x for group, x in groups.items() if x is not None}
