"""The table of drifting fields: a new field is one file of this folder and one line here."""

from collections.abc import Callable

import jax

from drifting_jax.method.fields.mean_shift import mean_shift
from drifting_jax.method.fields.options import DriftOptions
from drifting_jax.method.fields.sets import ScaledSets

# (one row and location, temperature, options) -> weights [g, n] of the targets, with which the
# generated samples x drift by Σ w·(y - x) over the targets y.
Field = Callable[[ScaledSets, float | jax.Array, DriftOptions], jax.Array]

FIELDS: dict[str, Field] = {
    "mean_shift": mean_shift,
}


def field_named(name: str) -> Field:
    """Returns the field of `DriftOptions.field`.

    Raises:
      ValueError: there is none of that name.
    """
    if name not in FIELDS:
        raise ValueError(f"field must be one of {', '.join(FIELDS)}; found {name!r}")
    return FIELDS[name]
