"""V of one set of samples by any field of the table, before it is normalised."""

import jax
import jax.numpy as jnp

from drifting_jax.method.fields.lookahead import lookahead
from drifting_jax.method.fields.options import DriftOptions
from drifting_jax.method.fields.sets import ScaledSets, check_even, pairwise_distance
from drifting_jax.method.fields.table import (
    check_options,
    field_named,
    negatives_of,
    temperatures_of,
    weighing_negatives,
)


def drifting_velocity(
    x: jax.Array,
    y: jax.Array,
    z: jax.Array | None = None,
    o: jax.Array | None = None,
    *,
    options: DriftOptions,
    cfg_scale: float | jax.Array = 1.0,
    key: jax.Array | None = None,
) -> jax.Array:
    """V [k, g, d] of samples x by the field of the options, one for each temperature.

    Coordinates count as divided by S/√d, so τ acts on the distance over √d. The loss finds S
    itself; this function is for toys, pictures and tests.

    Args:
      x: [g, d] samples, which drift.
      y: [p, d] real samples, which attract.
      z: [m, d] a second batch of generated samples, which repels x, for negatives "fresh"; None
        for other negatives, where the samples repel each other.
      o: [u, d] unconditional real samples, for guidance; or None.
      options: the field and its parameters; with `lookahead` k counts its further terms too.
      cfg_scale: α.
      key: of a field that draws random numbers.

    Raises:
      ValueError: sets that are empty or of another d, options that do not go together, or negatives
        that z does not fit.
    """
    check_options(options)
    negatives = negatives_of(options)
    check_even(negatives, len(x))
    if options.annealed:
        raise ValueError("annealed temperatures need a run; name those of the moment instead")
    if (negatives == "fresh") != (z is not None):
        raise ValueError(f"z is for negatives 'fresh' alone; found {negatives!r}")
    repelling, others = (x if z is None else z), x[:0] if o is None else o
    groups = {"x": x, "y": y, "z": repelling, "o": others}
    for name, points in groups.items():
        if points.ndim != 2 or points.shape[1] != x.shape[1] or not (len(points) or name == "o"):
            raise ValueError(f"{name} must be [n, {x.shape[-1]}], not empty; found {points.shape}")
    dtype = jnp.promote_types(jnp.result_type(*groups.values()), jnp.float32)
    x, y, repelling, others = (jnp.asarray(a, dtype) for a in groups.values())
    targets = jnp.concatenate([repelling, others, y])
    weight = (cfg_scale - 1) * weighing_negatives(options, len(repelling)) / max(len(others), 1)
    ones = jnp.ones(len(targets), dtype)
    sets = ScaledSets(
        samples=x,
        targets=targets,
        distance=pairwise_distance(x, targets) / x.shape[1] ** 0.5,
        weights=ones.at[len(repelling) : len(repelling) + len(others)].set(weight),
        num_generated=len(repelling),
        num_negative=len(repelling) + len(others),
        negatives=negatives,
        key=key,
    )
    field = field_named(options.field)

    def drift(temperature: jax.Array) -> jax.Array:
        if field.gives_weights:
            return lookahead(field.function, sets, temperature, options)
        return field.function(sets, temperature, options)[None]

    found = jax.vmap(drift)(jnp.asarray(temperatures_of(options), dtype))
    return found.reshape(-1, *x.shape)
