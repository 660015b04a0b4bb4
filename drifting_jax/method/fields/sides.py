"""What fields share that treat the positives, the generated and the unconditional targets apart."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from drifting_jax.method.fields.sets import ScaledSets, own_pairs

_NOTHING = -1e30  # the logit of a target that does not act; finite, so that no row has 0/0
# A target nearer than this, in units of S, counts as a unit vector times a smaller number. It keeps
# the coordinates of coinciding samples from being multiplied by their inverse distance.
_NEAREST = 1e-3


def linear_guidance(sets: ScaledSets, attraction: Callable[[np.ndarray], jax.Array]) -> jax.Array:
    """Returns weights [g, n] of V = (T_y - T_z) + (α - 1)(T_y - T_o).

    Args:
      sets: of one row and location.
      attraction: T of one set: which pairs act [g, n] bool -> weights [g, n], 0 for all others.
    """
    acts = ~sets.excluded
    weights = (1 + sets.guidance) * attraction(acts & sets.attracting)
    weights -= attraction(acts & sets.repelling)
    if np.any(sets.unconditional):
        weights -= sets.guidance * attraction(acts & sets.unconditional)
    return weights


def log_weights(sets: ScaledSets) -> jax.Array:
    """[1, n] logarithms of the targets' weights."""
    tiny = jnp.finfo(sets.weights.dtype).tiny
    found = jnp.where(sets.weights > 0, jnp.log(jnp.maximum(sets.weights, tiny)), _NOTHING)
    return found[None]


def acting_logits(logits: jax.Array, acts: np.ndarray) -> jax.Array:
    """[g, n] logits of the pairs that act, and next to nothing elsewhere."""
    return jnp.where(acts, logits, jnp.asarray(_NOTHING, logits.dtype))


def softmax(logits: jax.Array, acts: np.ndarray) -> jax.Array:
    """[g, n] softmax over the targets that act; zeros for a sample on which none acts."""
    logits = acting_logits(logits, acts)
    exponentials = jnp.exp(logits - jnp.max(logits, axis=1, keepdims=True)) * acts
    sums = jnp.sum(exponentials, axis=1, keepdims=True)
    return exponentials / jnp.maximum(sums, jnp.finfo(logits.dtype).tiny)


def log_sum_exp(logits: jax.Array, acts: np.ndarray, axis: int = 1) -> jax.Array:
    """log Σ exp over the pairs that act, along one axis, which is kept with one entry."""
    logits = acting_logits(logits, acts)
    largest = jnp.max(logits, axis=axis, keepdims=True)
    return largest + jnp.log(jnp.sum(jnp.exp(logits - largest), axis=axis, keepdims=True))


def mean(sets: ScaledSets, acts: np.ndarray) -> jax.Array:
    """[g, n] weights of the weighted mean over the targets that act."""
    weights = sets.weights[None] * acts
    sums = jnp.sum(weights, axis=1, keepdims=True)
    return weights / jnp.maximum(sums, jnp.finfo(weights.dtype).tiny)


def inverse_distance(sets: ScaledSets) -> jax.Array:
    """[g, n] one over the distance, which makes y - x a direction; 0 for a sample and itself.

    It is bounded for pairs that touch.
    """
    inverse = 1 / jnp.maximum(sets.distance, _NEAREST)
    return inverse if sets.negatives == "fresh" else inverse * ~own_pairs(*inverse.shape)
