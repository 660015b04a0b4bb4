"""Generated samples of some features with all their targets, and the distances between them.

A feature is [c, n, t, d]: class rows, samples, locations, channels. Features of equal channels may
lie side by side: t then counts the locations of all, and statistics are [f], one of each feature.
"""

import dataclasses
import functools
from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from drifting_jax.method.fields.options import DriftOptions
from drifting_jax.method.fields.sets import check_even, own_pairs, pairwise_distance
from drifting_jax.method.fields.table import check_options, field_named, negatives_of
from drifting_jax.method.statistics import DistanceSums

SQUARED_DISTANCE_MINIMUM = 1e-8


@flax.struct.dataclass
class Sets:
    """Samples and targets of features of d channels, in the order of the released code.

    Attributes:
      targets: [c, t, n, d], n = m + u + p, generated first; centred per row and location.
      weights: [c, n].
      num_generated: m, generated targets; g, the number of samples, unless they are fresh.
      num_negative: m + u, the targets that repel.
      lengths: locations of each feature, which add up to t.
      negatives: what the generated targets are; see `ScaledSets`.
      scale: what S is of the distances, "mean" or "rms"; see `Field`.
      samples: [c, t, g, d], centred likewise; None where the generated targets are the samples.
      key: of a field that draws random numbers, or None.
    """

    targets: jax.Array
    weights: jax.Array
    num_generated: int = flax.struct.field(pytree_node=False)
    num_negative: int = flax.struct.field(pytree_node=False)
    lengths: tuple[int, ...] = flax.struct.field(pytree_node=False)
    negatives: str = flax.struct.field(pytree_node=False, default="own")
    scale: str = flax.struct.field(pytree_node=False, default="mean")
    samples: jax.Array | None = None
    key: jax.Array | None = None

    @property
    def generated(self) -> jax.Array:
        """[c, t, g, d]."""
        return self.targets[:, :, : self.num_generated] if self.samples is None else self.samples

    @property
    def own(self) -> jax.Array | np.ndarray:
        """[g, n] bool: pairs of a sample with itself."""
        g, n = self.generated.shape[2], self.targets.shape[2]
        return own_pairs(g, n) if self.samples is None else np.zeros((g, n), bool)

    @property
    def own_distance(self) -> float:
        """The distance of a sample to itself; that of the released code, unless it counts."""
        return 0.0 if self.negatives == "kept" else SQUARED_DISTANCE_MINIMUM**0.5

    def for_locations(self, of_features: jax.Array) -> jax.Array:
        """[f, ...] -> [t, ...]: at each location the entry of its feature."""
        return of_features[np.repeat(np.arange(len(self.lengths)), self.lengths)]

    def sums(self, of_locations: jax.Array) -> jax.Array:
        """[t, ...] -> [f, ...]: the sum over the locations of each feature."""
        features = np.arange(len(self.lengths))
        is_of = features[:, None] == np.repeat(features, self.lengths)  # [f, t]
        # Not a product: what is not finite stays with its feature.
        is_of = np.expand_dims(is_of, tuple(range(2, of_locations.ndim + 1)))
        return jnp.sum(jnp.where(is_of, of_locations[None], 0), axis=1)


def make_sets(
    generated: jax.Array,
    positive: jax.Array,
    unconditional: jax.Array | None = None,
    fresh: jax.Array | None = None,
    *,
    options: DriftOptions = DriftOptions(),  # noqa: B008 (frozen)
    generated_weight: jax.Array | None = None,
    positive_weight: jax.Array | None = None,
    unconditional_weight: jax.Array | None = None,
    lengths: Sequence[int] | None = None,
    key: jax.Array | None = None,
) -> Sets:
    """Checks shapes and gathers all targets, under stop-gradient.

    Shapes are as in `drifting_loss`. `lengths` are the locations of each feature; None for one.
    `generated_weight` is that of the generated targets.
    """
    check_options(options)
    negatives = negatives_of(options)
    if unconditional is None:
        unconditional = generated[:, :0]
    _check_negatives(negatives, generated, fresh)
    repelling = generated if fresh is None else fresh
    groups = {"generated": repelling, "unconditional": unconditional, "positive": positive}
    for name, a in {**groups, "generated": generated}.items():
        if a.ndim != 4 or a.shape[0] != generated.shape[0] or a.shape[2:] != generated.shape[2:]:
            raise ValueError(
                f"{name} must be [c, n, t, d] with the c, t, d of generated; "
                f"found {name} {a.shape} and generated {generated.shape}"
            )
        if 0 in a.shape and not (name == "unconditional" and a.shape[1] == 0):
            raise ValueError(f"{name} is empty: found shape {a.shape}; every axis needs an entry")
    dtype = jnp.promote_types(jnp.result_type(generated, *groups.values()), jnp.float32)
    given = (generated_weight, unconditional_weight, positive_weight)
    weights = [
        _checked_weights(name, w, groups[name].shape[:2], dtype)
        for name, w in zip(groups, given, strict=True)
    ]
    sets = [jax.lax.stop_gradient(a).astype(dtype) for a in groups.values()]
    total = functools.reduce(jnp.add, [jnp.sum(a, axis=1, keepdims=True) for a in sets])
    centre = total / sum(a.shape[1] for a in sets)
    joined = jnp.concatenate([(a - centre).swapaxes(1, 2) for a in sets], axis=2)
    samples = None
    if fresh is not None:
        samples = (jax.lax.stop_gradient(generated).astype(dtype) - centre).swapaxes(1, 2)
    # Stored before it is used: fused into reductions, a concatenation makes XLA for GPUs fail in
    # its Triton rewriter (jax 0.10).
    targets = jax.lax.optimization_barrier(joined)
    return Sets(
        targets=targets,
        weights=jax.lax.stop_gradient(jnp.concatenate(weights, axis=1)),
        num_generated=repelling.shape[1],
        num_negative=repelling.shape[1] + unconditional.shape[1],
        lengths=tuple(lengths or (generated.shape[2],)),
        negatives=negatives,
        scale=field_named(options.field).scale,
        samples=samples,
        key=key,
    )


def _checked_weights(
    name: str, weights: jax.Array | None, shape: tuple[int, ...], dtype: jnp.dtype
) -> jax.Array:
    """Weights [c, n] of the targets of a group; ones if there are none."""
    if weights is None:
        return jnp.ones(shape, dtype)
    if jnp.shape(weights) != shape:
        raise ValueError(f"{name}_weight must be {shape}; found {jnp.shape(weights)}")
    return jnp.asarray(weights, dtype)


def _check_negatives(negatives: str, generated: jax.Array, fresh: jax.Array | None) -> None:
    if (negatives == "fresh") != (fresh is not None):
        found = "none" if fresh is None else "one"
        raise ValueError(
            "a second batch of generated samples is for negatives='fresh' alone: the negatives "
            f"are {negatives!r}, and there is {found}"
        )
    check_even(negatives, generated.shape[1])


def distances(sets: Sets) -> jax.Array:
    """Returns [c, t, g, n] distances of samples to all targets; own pairs have `own_distance`."""
    own, samples = sets.own, sets.samples

    def one_set(generated: jax.Array, targets: jax.Array) -> jax.Array:
        distance = pairwise_distance(
            generated,
            targets,
            squared_minimum=SQUARED_DISTANCE_MINIMUM,
            ignored=None if samples is not None else jnp.asarray(own),
            are_centred=True,
        )
        return jnp.where(own, jnp.asarray(sets.own_distance, distance.dtype), distance)

    return jax.vmap(jax.vmap(one_set))(sets.generated, sets.targets)


def distance_sums(distance: jax.Array, sets: Sets) -> DistanceSums:
    """Sums `distances` [c, t, g, n] for the distance scale S (21) and the diversity."""
    c, _, g, n = distance.shape
    positives, repelling = n - sets.num_negative, sets.num_generated
    lengths = jnp.asarray(sets.lengths, distance.dtype)
    target = np.arange(n)[None, None, None]
    # Factors, where slices would be copied before they are summed.
    is_generated = (target < repelling).astype(distance.dtype)
    is_positive = (target >= sets.num_negative).astype(distance.dtype)
    over = (0, 2, 3)  # all axes but locations
    are_own = sets.samples is None
    own = sets.own_distance * c * g * lengths * are_own
    sums = DistanceSums(
        weighted=sets.sums(jnp.sum(distance * sets.weights[:, None, None], over)),
        weight=jnp.sum(sets.weights) * g * lengths,
        generated=sets.sums(jnp.sum(distance * is_generated, over)) - own,
        generated_pairs=c * g * max(repelling - are_own, 1) * lengths,
        positive=sets.sums(jnp.sum(distance * is_positive, over)),
        positive_pairs=c * g * positives * lengths,
    )
    if sets.scale == "mean":
        return sums
    return _with_squares(sums, distance, sets, is_generated + is_positive)


def _with_squares(
    sums: DistanceSums, distance: jax.Array, sets: Sets, counts: jax.Array
) -> DistanceSums:
    """The sums that give S₂: of squares, to generated samples and positives (2605.11755).

    The samples themselves are among them, also where the generated targets are fresh.
    """
    weights = sets.weights[:, None, None] * counts
    lengths = jnp.asarray(sets.lengths, distance.dtype)
    c, _, g, _ = distance.shape
    squares = jnp.sum(jnp.square(distance) * weights, axis=(0, 2, 3))
    weight = jnp.sum(weights) * g
    if sets.samples is not None:  # Σ ‖x_i - x_j‖² needs no pairs
        apart = sets.samples - jnp.mean(sets.samples, axis=2, keepdims=True)
        squares += 2 * g * jnp.sum(jnp.square(apart), axis=(0, 2, 3))
        weight += c * g * g
    return dataclasses.replace(sums, weighted=sets.sums(squares), weight=weight * lengths, power=2)
