"""The drifting loss: a frozen, drifted target and a mean square, (6), (18)-(26), (36).

A feature is [c, n, t, d]: class rows, samples, locations, channels. Every row and location has its
own field; the distance scale S and the norm of the drift are shared by all of them, so they are
computed here, between the passes, and never inside the `vmap`. A batch that comes in pieces (over
class rows) adds up `distance_sums`, then `drift_sums`, then averages `drifted_loss` over the pieces
(`feature_losses`).
"""

from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp

from drifting_jax.method import fields
from drifting_jax.method.fields import FieldOptions

SQUARED_DISTANCE_MINIMUM = 1e-8
SCALE_MINIMUM = 1e-3
DRIFT_MEAN_SQUARE_MINIMUM = 1e-8
# Added to a sample's scaled distance to itself: what the release does, and out of reach of any τ.
SELF_DISTANCE = 100.0


@flax.struct.dataclass
class DriftingStatistics:
    """What one feature's loss was made of; float32 (float64 for float64 input).

    Attributes:
      distance_scale: [] S, the weighted mean distance to all targets, before its clip (21).
      drift_mean_square: [n_τ] mean square of each temperature's drift before it is normalised
        (23). This falls towards its noise floor as q approaches p; the loss does not.
      generated_distance: [] mean distance between different generated samples (diversity; 0 when
        g is 1).
      positive_distance: [] mean distance from generated samples to positives.
    """

    distance_scale: jax.Array
    drift_mean_square: jax.Array
    generated_distance: jax.Array
    positive_distance: jax.Array

    @property
    def is_degenerate(self) -> jax.Array:
        """Whether S is at its clip: the feature hardly varies, and its drift is rounding noise."""
        return self.distance_scale <= SCALE_MINIMUM


@flax.struct.dataclass
class DistanceSums:
    """Sums over pairs of a generated sample and a target; those of pieces of a batch add up.

    Attributes:
      weighted, weight: [] Σ w·distance and Σ w over all pairs (21).
      generated, generated_pairs: [] Σ distance between different generated samples, and how many
        (at least one a sample: 0 over some where g is 1).
      positive, positive_pairs: [] likewise to positives.
    """

    weighted: jax.Array
    weight: jax.Array
    generated: jax.Array
    generated_pairs: jax.Array
    positive: jax.Array
    positive_pairs: jax.Array

    def statistics(self, drift_mean_square: jax.Array) -> DriftingStatistics:
        """With these and the drifts' mean squares [n_τ], what is logged and shared."""
        return DriftingStatistics(
            distance_scale=self.distance_scale,
            drift_mean_square=drift_mean_square,
            generated_distance=self.generated / self.generated_pairs,
            positive_distance=self.positive / self.positive_pairs,
        )

    @property
    def distance_scale(self) -> jax.Array:
        """[] S (21), before its clip."""
        return self.weighted / jnp.maximum(self.weight, jnp.finfo(self.weight.dtype).tiny)


@flax.struct.dataclass
class Sets:
    """One feature's samples and targets, in the order of the release: generated first.

    Attributes:
      targets: [c, n, t, d], n = g + u + p, centred per row and location.
      weights: [c, n].
      num_generated: g.
      num_negative: g + u.
    """

    targets: jax.Array
    weights: jax.Array
    num_generated: int = flax.struct.field(pytree_node=False)
    num_negative: int = flax.struct.field(pytree_node=False)

    @property
    def generated(self) -> jax.Array:
        return self.targets[:, : self.num_generated]


def make_sets(
    generated: jax.Array,
    positive: jax.Array,
    negative: jax.Array | None = None,
    *,
    generated_weight: jax.Array | None = None,
    positive_weight: jax.Array | None = None,
    negative_weight: jax.Array | None = None,
) -> Sets:
    """Checks shapes and gathers all targets, under stop-gradient. Shapes as in `drifting_loss`."""
    if negative is None:
        negative = generated[:, :0]
    groups = {"generated": generated, "negative": negative, "positive": positive}
    for name, a in groups.items():
        if a.ndim != 4 or a.shape[0] != generated.shape[0] or a.shape[2:] != generated.shape[2:]:
            raise ValueError(
                f"{name} must be [c, n, t, d] with the c, t, d of generated; "
                f"found {name} {a.shape} and generated {generated.shape}"
            )
        if 0 in a.shape and not (name == "negative" and a.shape[1] == 0):
            raise ValueError(f"{name} is empty: found shape {a.shape}; every axis needs an entry")
    dtype = jnp.promote_types(jnp.result_type(*groups.values()), jnp.float32)
    weights = {
        "generated": generated_weight,
        "negative": negative_weight,
        "positive": positive_weight,
    }
    for name, w in weights.items():
        expected = groups[name].shape[:2]
        if w is not None and jnp.shape(w) != expected:
            raise ValueError(f"{name}_weight must be {expected}; found {jnp.shape(w)}")
        weights[name] = jnp.ones(expected, dtype) if w is None else jnp.asarray(w, dtype)
    targets = jnp.concatenate([a.astype(dtype) for a in groups.values()], axis=1)
    targets = targets - jnp.mean(targets, axis=1, keepdims=True)
    return Sets(
        targets=jax.lax.stop_gradient(targets),
        weights=jax.lax.stop_gradient(jnp.concatenate(list(weights.values()), axis=1)),
        num_generated=generated.shape[1],
        num_negative=generated.shape[1] + negative.shape[1],
    )


def _own_pairs(g: int, n: int) -> jax.Array:
    return jnp.arange(g)[:, None] == jnp.arange(n)[None, :]


def distances(sets: Sets) -> jax.Array:
    """[c, t, g, n] distances of generated samples to all targets; own pairs at the clip, 1e-4."""

    def one_set(x, y):
        distance = fields.pairwise_distance(x, y, squared_minimum=SQUARED_DISTANCE_MINIMUM)
        own = _own_pairs(*distance.shape)
        return jnp.where(own, jnp.asarray(SQUARED_DISTANCE_MINIMUM**0.5, x.dtype), distance)

    over_locations = jax.vmap(one_set, in_axes=1)
    return jax.vmap(over_locations)(sets.generated, sets.targets)


def distance_sums(distance: jax.Array, sets: Sets) -> DistanceSums:
    """Sums of `distances` [c, t, g, n] for the distance scale S (21) and the diversity."""
    c, t, g, n = distance.shape
    positives = n - sets.num_negative
    own = c * t * g * SQUARED_DISTANCE_MINIMUM**0.5
    dtype = distance.dtype
    return DistanceSums(
        weighted=jnp.sum(distance * sets.weights[:, None, None]),
        weight=jnp.sum(sets.weights) * (t * g),
        generated=jnp.sum(distance[..., :g]) - own,
        generated_pairs=jnp.asarray(float(c * t * g * max(g - 1, 1)), dtype),
        positive=jnp.sum(distance[..., sets.num_negative :]),
        positive_pairs=jnp.asarray(float(c * t * g * positives), dtype),
    )


def _scales(distance_scale: jax.Array, d: int) -> tuple[jax.Array, jax.Array]:
    """S for distances and S/√d for coordinates, both clipped."""
    return (
        jnp.maximum(distance_scale, SCALE_MINIMUM),
        jnp.maximum(distance_scale / d**0.5, SCALE_MINIMUM),
    )


def raw_drifts(
    sets: Sets,
    distance: jax.Array,
    distance_scale: jax.Array,
    *,
    temperatures: Sequence[float],
    affinity_floor: float,
    options: FieldOptions = FieldOptions(),  # noqa: B008 (frozen)
) -> jax.Array:
    """[n_τ, c, t, g, d] drifts in scaled coordinates, not yet normalised (A.6)."""
    for_distance, for_coordinates = _scales(distance_scale, sets.targets.shape[-1])

    def one_set(y, distance, weights):
        g, m = sets.num_generated, sets.num_negative
        y = y / for_coordinates
        distance = distance / for_distance
        distance = distance + jnp.where(_own_pairs(*distance.shape), SELF_DISTANCE, 0.0)

        def at(temperature):
            logits = fields.kernel_logits(distance, temperature=temperature, kernel=options.kernel)
            a = fields.affinities(logits, floor=affinity_floor, normalize=options.normalize)
            a = a * weights[None, :]
            return fields.drift(y[:g], y[m:], y[:m], a[:, m:], a[:, :m], options=options)

        return jnp.stack([at(temperature) for temperature in temperatures])

    over_locations = jax.vmap(one_set, in_axes=(1, 0, None), out_axes=1)
    return jax.vmap(over_locations, out_axes=1)(sets.targets, distance, sets.weights)


def drift_sums(drifts: jax.Array) -> jax.Array:
    """[n_τ] Σ drift² over everything; over its count it is the raw drift mean square (23)."""
    return jnp.sum(jnp.square(drifts), axis=(1, 2, 3, 4))


def drifted_loss(
    generated: jax.Array,
    drifts: jax.Array,
    distance_scale: jax.Array,
    drift_mean_square: jax.Array,
) -> jax.Array:
    """Mean square between samples and their frozen drifted selves (25), (26).

    Written as ((x - stopgrad(x))/S' - ΣV)²: the value and the gradient (36) of the paper's
    (x/S' - stopgrad(x/S' + ΣV))² without the rounding of adding V to x and taking x away again.

    Args:
      generated: [c, g, t, d], the only argument that gradients reach.
      drifts: [n_τ, c, t, g, d] from `raw_drifts`.
      distance_scale: [], drift_mean_square: [n_τ], over the whole batch.

    Returns:
      [] loss, at least float32.
    """
    norm = jnp.sqrt(jnp.maximum(drift_mean_square, DRIFT_MEAN_SQUARE_MINIMUM))
    total = jnp.sum(drifts / norm[:, None, None, None, None], axis=0).swapaxes(1, 2)  # [c, g, t, d]
    _, for_coordinates = _scales(distance_scale, generated.shape[-1])
    x = generated.astype(total.dtype)
    moved = (x - jax.lax.stop_gradient(x)) / jax.lax.stop_gradient(for_coordinates)
    return jnp.mean(jnp.square(moved - jax.lax.stop_gradient(total)))


def drifting_loss(
    generated: jax.Array,
    positive: jax.Array,
    negative: jax.Array | None = None,
    *,
    generated_weight: jax.Array | None = None,
    positive_weight: jax.Array | None = None,
    negative_weight: jax.Array | None = None,
    temperatures: Sequence[float] = (0.02, 0.05, 0.2),
    affinity_floor: float = 1e-6,
    options: FieldOptions = FieldOptions(),  # noqa: B008 (frozen)
) -> tuple[jax.Array, DriftingStatistics]:
    """Drifting loss of one feature (A.5, A.6).

    Generated samples are always negatives of each other, self excluded. The value is the mean
    square of a sum of unit-RMS drifts, between 0 and n_τ² and nearly constant in training: watch
    `drift_mean_square` instead.

    Args:
      generated: [c, g, t, d] features of generated samples; gradients reach these alone.
      positive: [c, p, t, d] features of real samples of the row's class.
      negative: [c, u, t, d] features of real samples of any class (guidance), or None.
      generated_weight, positive_weight, negative_weight: [c, n] weights of the targets, 1 if None.
        They multiply the affinities after both softmaxes and weigh the mean distance.
      temperatures: τ, in units of the mean distance S.
      affinity_floor: lower clip of softmax·softmax; 1e-6 as released, 0 as in Algorithm 2.
      options: the paper's ablations of the field.

    Returns:
      The loss [] and its `DriftingStatistics`, in float32, or float64 if an input is.

    Raises:
      ValueError: for shapes that do not fit each other, empty sets, or no temperature.
    """
    if not len(temperatures) or min(temperatures) <= 0:
        raise ValueError(f"temperatures must be one or more positive numbers; found {temperatures}")
    sets = make_sets(
        generated,
        positive,
        negative,
        generated_weight=generated_weight,
        positive_weight=positive_weight,
        negative_weight=negative_weight,
    )
    distance = distances(sets)
    sums = distance_sums(distance, sets)
    drifts = raw_drifts(
        sets,
        distance,
        sums.distance_scale,
        temperatures=tuple(temperatures),
        affinity_floor=affinity_floor,
        options=options,
    )
    # As a float: beyond 2³¹ at the paper's sizes.
    drift_mean_square = drift_sums(drifts) / float(generated.size)
    loss = drifted_loss(generated, drifts, sums.distance_scale, drift_mean_square)
    return loss, sums.statistics(drift_mean_square)
