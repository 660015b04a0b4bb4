"""How many targets a kernel sees, which samples it does not reach, and how much of V is signal.

Each row has samples x and two independent draws of targets: negatives z, z' of q and positives y,
y' of p. Guidance is off (α = 1), so that unconditional samples play no role.
"""

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from drifting_jax.distributed.class_rows import to_float
from drifting_jax.method.encoders import FeatureFunction
from drifting_jax.method.fields.mean_shift import affinities, kernel_logits
from drifting_jax.method.fields.options import DriftOptions, Kernel
from drifting_jax.method.fields.sets import pairwise_distance
from drifting_jax.method.fields.table import FIELDS
from drifting_jax.method.fields.velocity import drifting_velocity
from drifting_jax.method.statistics import SCALE_MINIMUM, DistanceSums
from drifting_jax.method.target_sets import distance_sums, distances, make_sets

PyTree = Any
_LOCATIONS_AT_ONCE = 16


@dataclasses.dataclass(frozen=True)
class Measures:
    """What one feature, or a group of features, gives at k temperatures; float64.

    Attributes:
      scale: [] S, the mean distance of samples to targets (21); of a group the median.
      effective: [k] effective number of positives, from 1 (a nearest neighbour) to p (flat):
        the median over samples and locations of a row, and its median over rows.
      unreached: [k] share of the samples that no positive reaches, from 0 to 1; see `unreached`.
      signal: [k] correlation of the drifts by two draws, from -1 to 1; see `diagnose`.
    """

    scale: float
    effective: np.ndarray
    unreached: np.ndarray
    signal: np.ndarray

    @property
    def is_degenerate(self) -> bool:
        """Whether S is at its clip: the feature hardly varies, and the loss leaves it out."""
        return self.scale <= SCALE_MINIMUM


@flax.struct.dataclass
class RowMeasures:
    """Of one feature and one row.

    Attributes:
      effective, unreached: [k] as in `Measures`, of this row.
      products: [k, 3] Σ V·V', Σ V·V and Σ V'·V' over samples and locations, where V is what a
        sample's drift differs by from the mean of its row and location.
    """

    effective: jax.Array
    unreached: jax.Array
    products: jax.Array


def kernel_of(options: DriftOptions) -> Kernel | None:
    """Returns the kernel of a field, or None if it has none with a temperature."""
    field = FIELDS[options.field]
    return options.kernel if "kernel" in field.reads else field.kernel


def effective_targets(logits: jax.Array) -> jax.Array:
    """Returns [...] 1/Σa² of the softmax a over the last axis of logits [..., p]: 1 to p."""
    return 1 / jnp.sum(jnp.square(jax.nn.softmax(logits, axis=-1)), axis=-1)


def unreached(logits: jax.Array, num_negative: int, options: DriftOptions) -> jax.Array:
    """Returns [g] bool: samples whose affinities to all positives are at the floor or vanish.

    The affinity is the square root of the product of both softmaxes, before the floor; or as
    `options.normalize` says. With the release's floor of 1e-6 a sample is unreached if no affinity
    exceeds 1e-3: all positives then pull it alike, whatever their distance. Without a floor, or for
    another field than the mean shift, it is unreached if none exceeds the smallest normal float32.

    Args:
      logits: [g, n] log-kernel of samples and all targets, negatives first.
      num_negative: how many targets are negatives.
      options: the field, its floor and its normalisation.
    """
    floor = options.affinity_floor if options.field == "mean_shift" else 0.0
    a = affinities(logits, normalize=options.normalize)
    least = max(floor**0.5, float(jnp.finfo(jnp.float32).tiny))
    return jnp.max(a[:, num_negative:], axis=1) <= least


def diagnose(
    function: FeatureFunction,
    variables: PyTree,
    rows: Sequence[np.ndarray],
    *,
    generated: int,
    options: DriftOptions,
) -> dict[str, Measures]:
    """Measures each feature of class rows, at the temperatures of the options.

    The signal is the correlation Σ V·V' / √(Σ V·V Σ V'·V') over all rows, samples and locations. V
    and V' are the drifts of the same samples x by the first and the second draw of targets, less
    their mean over the samples of a row. A flat kernel moves all samples alike; only what tells
    samples apart counts. If V and V' are a common part plus independent noise, the correlation is
    the share of the common part in the mean square of V.

    Args:
      function: features of frozen encoders.
      variables: of the encoders.
      rows: images [g + 2g + 2p, h, w, channels] of each class row; see `rows.draw_row`.
      generated: g.
      options: the field; its kernel must not be None (`kernel_of`).

    Returns:
      {name of the feature: Measures}.
    """
    # Two draws of targets for one set of samples: the samples are not among their negatives.
    options = dataclasses.replace(options, negatives="fresh", lookahead=0, annealed=False)
    features = jax.jit(lambda variables, images: function(variables, to_float(images)))
    sums = jax.jit(functools.partial(_row_sums, generated=generated, options=options))
    measure = jax.jit(functools.partial(measure_row, generated=generated, options=options))

    def of_rows() -> Iterable[dict[str, jax.Array]]:
        for images in rows:  # one at a time: the features of all may not fit in memory
            yield features(variables, images)

    total: dict[str, DistanceSums] = {}
    for found in of_rows():
        for name, x in found.items():
            one = sums(x)
            total[name] = jax.tree.map(jnp.add, total[name], one) if name in total else one
    scales = {name: one.distance_scale[0] for name, one in total.items()}
    parts: dict[str, list[RowMeasures]] = {name: [] for name in scales}
    for found in of_rows():
        for name, x in found.items():
            parts[name].append(jax.device_get(measure(x, scales[name])))
    return {name: _joined(float(scales[name]), parts[name]) for name in parts}


def measure_row(
    x: jax.Array, scale: jax.Array, *, generated: int, options: DriftOptions
) -> RowMeasures:
    """Measures one feature of one row.

    Args:
      x: [g + 2g + 2p, t, d] in the order of `rows.draw_row`.
      scale: [] S.
      generated: g.
      options: the field, with negatives "fresh".
    """
    sets = _split(x, generated)
    for_coordinates = jnp.maximum(scale, SCALE_MINIMUM) / x.shape[-1] ** 0.5
    locations = jax.tree.map(lambda a: jnp.moveaxis(a, -2, 0) / for_coordinates, sets)
    found = jax.lax.map(
        lambda sets: _measure_location(*sets, options=options),
        locations,
        batch_size=min(_LOCATIONS_AT_ONCE, x.shape[1]),
    )
    effective, out, products = found  # [t, 2, k, g] twice, [t, k, 3]
    return RowMeasures(
        effective=jnp.median(effective, axis=(0, 1, 3)),
        unreached=jnp.mean(out, axis=(0, 1, 3)),
        products=jnp.sum(products, axis=0),
    )


def _measure_location(
    x: jax.Array, negative: jax.Array, positive: jax.Array, *, options: DriftOptions
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Effective numbers and unreached samples [2, k, g], and products [k, 3], of one location.

    Args:
      x: [g, d] samples in coordinates over S/√d.
      negative, positive: [2, n, d] both draws of targets.
      options: the field.
    """
    kernel = kernel_of(options)
    assert kernel is not None
    first, second = (
        drifting_velocity(x, positive[i], negative[i], options=options) for i in range(2)
    )  # [k, g, d]
    # A flat kernel moves all samples of a row alike: their mean does not count.
    first, second = (v - jnp.mean(v, axis=1, keepdims=True) for v in (first, second))
    pairs = ((first, second), (first, first), (second, second))
    products = jnp.stack([jnp.sum(a * b, axis=(1, 2)) for a, b in pairs], axis=-1)

    def of_draw(z: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        distance = pairwise_distance(x, jnp.concatenate([z, y])) / x.shape[1] ** 0.5

        def at(temperature: jax.Array) -> tuple[jax.Array, jax.Array]:
            logits = kernel_logits(distance, temperature=temperature, kernel=kernel)
            return effective_targets(logits[:, len(z) :]), unreached(logits, len(z), options)

        return jax.vmap(at)(jnp.asarray(options.temperatures, x.dtype))

    effective, out = jax.vmap(of_draw)(negative, positive)
    return effective, out, products


def _split(x: jax.Array, generated: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Samples [g, t, d] and both draws of negatives and of positives [2, n, t, d], in float32."""
    x = x.astype(jnp.float32)
    samples, negative, positive = jnp.split(x, (generated, 3 * generated))
    draws = (2, -1, *x.shape[1:])
    return samples, negative.reshape(draws), positive.reshape(draws)


def _row_sums(x: jax.Array, *, generated: int, options: DriftOptions) -> DistanceSums:
    """Sums [1] of distances of a row's samples to the targets of both draws."""
    samples, negative, positive = jnp.split(x.astype(jnp.float32), (generated, 3 * generated))
    sets = make_sets(samples[None], positive[None], fresh=negative[None], options=options)
    return distance_sums(distances(sets), sets)


def _joined(scale: float, rows: Sequence[RowMeasures]) -> Measures:
    effective, out = (
        np.stack([np.asarray(getattr(row, name), np.float64) for row in rows])
        for name in ("effective", "unreached")
    )
    products = np.stack([np.asarray(row.products, np.float64) for row in rows]).sum(axis=0)
    both, first, second = products.T
    norm = np.sqrt(first) * np.sqrt(second)
    signal = np.divide(both, norm, out=np.zeros_like(both), where=norm > 0)
    return Measures(scale, np.median(effective, axis=0), out.mean(axis=0), signal)
