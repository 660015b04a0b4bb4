"""Conditions that come with a single target each: an observation with its action, for example.

A row of a step is one condition with g generated samples and its target. Softmaxes over many
positives lose their meaning there. Four rules help:

* kernels of several sizes together, the field "mmd" (`fields/energy.py`);
* the almost-fair energy score, which is the field "fair_energy" (`fields/energy.py`);
* the scale S and the norm of the drift of each row by itself, with a learned temperature;
* further positives: targets of neighbouring conditions, weighed by a kernel on the conditions.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from drifting_jax.method.fields import sides
from drifting_jax.method.fields.mean_shift import kernel_logits
from drifting_jax.method.fields.options import DriftOptions
from drifting_jax.method.fields.sets import ScaledSets
from drifting_jax.method.losses import drifted, of_each_set, with_gradient
from drifting_jax.method.statistics import DriftingStatistics
from drifting_jax.method.target_sets import Sets, distance_sums, distances, make_sets

LEAST_TEMPERATURE = 1e-3


@dataclasses.dataclass(frozen=True)
class Moment:
    """What a field may need of the step it is computed in.

    Attributes:
      temperature: [] a learned temperature, in place of those of the options; or None.
      progress: [] the done share of the training, for annealed temperatures; or None.
      key: of a field that draws random numbers; or None.
    """

    temperature: jax.Array | None = None
    progress: jax.Array | None = None
    key: jax.Array | None = None


def single_target_loss(
    generated: jax.Array,
    positive: jax.Array,
    fresh: jax.Array | None = None,
    *,
    positive_weight: jax.Array | None = None,
    options: DriftOptions,
    per_row: bool = False,
    moment: Moment = Moment(),
) -> tuple[jax.Array, DriftingStatistics]:
    """Drifting loss of rows that are one condition each, as `losses.drifting_loss`.

    Args:
      generated: [c, g, t, d] samples of each condition; gradients reach these alone.
      positive: [c, p, t, d] the target, and further ones of neighbouring conditions.
      fresh: [c, m, t, d] a second batch of samples, for `options.negatives` "fresh".
      positive_weight: [c, p], 1 if None; see `neighbour_weights`.
      options: the field and its temperatures.
      per_row: whether each row has its own scale S and its own norm of the drift. The loss is
        then the mean of the rows' losses.
      moment: see `Moment`.

    Returns:
      The loss [] and its `DriftingStatistics`, which are means over the rows if `per_row`.

    Raises:
      ValueError: shapes that do not fit each other, an empty set, or an unknown field.
    """
    temperatures = None
    if moment.temperature is not None:
        temperatures = jax.lax.stop_gradient(moment.temperature)[None]

    def of_rows(generated, positive, fresh, weight):
        sets = make_sets(
            generated,
            positive,
            None,
            fresh,
            options=options,
            positive_weight=weight,
            key=moment.key,
        )
        loss, cotangent, statistics = drifted(
            sets, options, progress=moment.progress, temperatures=temperatures
        )
        return loss[0], cotangent, jax.tree.map(lambda x: x[0], statistics)

    found = _by_row(of_rows) if per_row else of_rows
    loss, cotangent, statistics = found(generated, positive, fresh, positive_weight)
    if per_row:
        cotangent, loss = cotangent[:, 0] / len(generated), jnp.mean(loss)
        statistics = jax.tree.map(functools.partial(jnp.mean, axis=0), statistics)
    return with_gradient(loss, generated, cotangent), statistics


def temperature_loss(
    generated: jax.Array, positive: jax.Array, temperature: jax.Array, *, options: DriftOptions
) -> jax.Array:
    """The loss [] of a learned temperature: how well the nearest sample of a row finds its target.

    It is the mean over rows of -max_i log(n·m_i). m_i is the mass of the positives in the softmax
    of sample i over its n targets; 1/n of it would be chance. Distances are over the S of their
    row. Gradients reach the temperature alone.

    Args:
      generated: [c, g, t, d].
      positive: [c, p, t, d].
      temperature: [] above 0.
      options: their kernel counts, and their negatives, which must be the samples themselves.
    """

    def of_set(scaled: ScaledSets, temperature: jax.Array) -> jax.Array:
        logits = kernel_logits(scaled.distance, temperature=temperature, kernel=options.kernel)
        acts = ~scaled.excluded
        mass = sides.log_sum_exp(logits, acts & scaled.attracting) - sides.log_sum_exp(logits, acts)
        return -jnp.max(mass[:, 0] + np.log(acts.sum(axis=1)))

    def of_rows(generated, positive):
        sets: Sets = make_sets(generated, positive, options=options)
        distance = distances(sets)
        scale = distance_sums(distance, sets).distance_scale
        return of_each_set(of_set, sets, distance, scale, temperature[None])

    return jnp.mean(_by_row(of_rows)(generated, positive))


def neighbour_weights(distance: jax.Array, width: float | jax.Array) -> jax.Array:
    """Weights of positives by the distance of their condition to that of the row.

    They are exp(-distance²/(2·width²)): 1 for a row's own target. Any shape -> the same.
    """
    return jnp.exp(-0.5 * jnp.square(distance / width))


def _by_row(function):
    """Returns a function of one row [1, ...] at a time as one of all rows; None stays None."""

    def of_all(*arrays: jax.Array | None):
        given = [a for a in arrays if a is not None]

        def one(*rows: jax.Array):
            rest = iter(rows)
            return function(*(None if a is None else next(rest)[None] for a in arrays))

        return jax.vmap(one)(*given)

    return of_all
