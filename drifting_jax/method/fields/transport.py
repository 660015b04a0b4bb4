"""Fields of entropic transport plans: Sinkhorn drifting (2603.12366) and W-Flow (2605.11755)."""

import jax
import jax.numpy as jnp
import numpy as np

from drifting_jax.method.fields import sides
from drifting_jax.method.fields.options import DriftOptions
from drifting_jax.method.fields.sets import ScaledSets

_IN_A_BLOCK = 10  # iterations on one kernel
_NO_MASS = -1e30  # logarithm of the mass of a target that weighs nothing; finite
_LEAST_WEIGHT = 1e-6  # of an unconditional target, so that α = 1 has a plan too


def sinkhorn(sets: ScaledSets, temperature: float | jax.Array, options: DriftOptions) -> jax.Array:
    """Weights [g, n] of V = T_y - T_z, means of the targets by a transport plan to each side.

    ε = τ, of the distance over S or of its square. Unconditional targets join z in one plan, with
    their weights in the marginal of the targets.
    """
    logits = _log_kernel(sets, temperature, options, factor=1.0)
    acts = ~sets.excluded
    least = jnp.where(sets.unconditional, _LEAST_WEIGHT, 0)
    weights = jnp.maximum(sets.weights, least)
    attracted = plan_means(logits, acts & sets.attracting, weights, options.iterations)
    return attracted - plan_means(logits, acts & ~sets.attracting, weights, options.iterations)


def w_flow(sets: ScaledSets, temperature: float | jax.Array, options: DriftOptions) -> jax.Array:
    """Weights [g, n] of V = (T_y - T_z) + (α - 1)(T_y - T_o), a transport plan to each set.

    The cost is half the squared distance in coordinates over S₂/√d, and ε = τ·d; with the plain
    distance, ε = τ·√d. S₂ is the root mean square distance.
    """
    logits = _log_kernel(sets, temperature, options, factor=0.5)

    def attraction(acts):
        return plan_means(logits, acts, sets.weights, options.iterations)

    return sides.linear_guidance(sets, attraction)


def _log_kernel(
    sets: ScaledSets, temperature: float | jax.Array, options: DriftOptions, *, factor: float
) -> jax.Array:
    """[g, n] -cost/ε; `factor` is that of the squared cost."""
    if options.cost == "squared":
        return -factor * jnp.square(sets.distance) / temperature
    return -sets.distance / temperature


def plan_means(
    logits: jax.Array, acts: np.ndarray, weights: jax.Array, iterations: int
) -> jax.Array:
    """Returns the rows of a transport plan, each divided by its mass: [g, n].

    Sinkhorn's iterations scale rows to 1/g and then columns to the targets' weights. One in ten
    runs on logarithms. It leaves a kernel with balanced rows and columns, on which the others take
    two products with vectors each.

    Args:
      logits: [g, n] -cost/ε.
      acts: [g, n] bool, the pairs that the plan may use.
      weights: [n] masses of the targets, up to a factor.
      iterations: K, at least 1.
    """
    taken = np.flatnonzero(acts.any(axis=0))
    if not len(taken):
        return jnp.zeros_like(logits)
    first, end = int(taken[0]), int(taken[-1]) + 1  # targets of one side lie together
    logits, acts = logits[:, first:end], acts[:, first:end]
    tiny = jnp.finfo(logits.dtype).tiny
    masses = weights[first:end] * acts.any(axis=0)
    masses = masses / jnp.maximum(jnp.sum(masses), tiny)

    def block(columns: jax.Array, count: int) -> jax.Array:
        return _iterated(logits + columns[None], acts, masses, count) + columns

    whole, rest = divmod(iterations, _IN_A_BLOCK)
    columns = jnp.zeros(end - first, logits.dtype)
    columns = jax.lax.fori_loop(0, whole, lambda _, c: block(c, _IN_A_BLOCK), columns)
    if rest:
        columns = block(columns, rest)
    # The factor of a row falls out of its mean.
    found = sides.softmax(logits + columns[None], acts)
    return jnp.pad(found, ((0, 0), (first, weights.shape[0] - end)))


def _iterated(logits: jax.Array, acts: np.ndarray, masses: jax.Array, count: int) -> jax.Array:
    """Logarithms [n] of the columns' factors after some iterations, the first on logarithms."""
    tiny, rows = jnp.finfo(logits.dtype).tiny, logits.shape[0]
    log_masses = jnp.where(masses > 0, jnp.log(jnp.maximum(masses, tiny)), _NO_MASS)
    logits = logits - sides.log_sum_exp(logits, acts) - np.log(rows)
    first = log_masses[None] - sides.log_sum_exp(logits, acts, axis=0)  # [1, n]
    plan = jnp.exp(jnp.where(acts, logits + first, _NO_MASS))

    def iterate(_, columns: jax.Array) -> jax.Array:
        of_rows = (1 / rows) / jnp.maximum(_product(plan, columns), tiny)
        return masses / jnp.maximum(_product(plan.T, of_rows), tiny)

    columns = jax.lax.fori_loop(1, count, iterate, jnp.ones_like(masses))
    return first[0] + jnp.log(jnp.maximum(columns, tiny))


def _product(matrix: jax.Array, vector: jax.Array) -> jax.Array:
    return jnp.einsum("gn,n->g", matrix, vector, precision=jax.lax.Precision.HIGHEST)
