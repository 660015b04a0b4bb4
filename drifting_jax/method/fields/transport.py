"""Fields of entropic transport plans: Sinkhorn drifting (2603.12366) and W-Flow (2605.11755)."""

import jax
import jax.numpy as jnp
import numpy as np

from drifting_jax.method.fields import sides
from drifting_jax.method.fields.options import DriftOptions
from drifting_jax.method.fields.sets import ScaledSets

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

    Sinkhorn's iterations scale rows to 1/g and then columns to the targets' weights. The first runs
    on logarithms; it leaves a kernel without empty columns, and the others take two products with
    vectors each.

    Args:
      logits: [g, n] -cost/ε.
      acts: [g, n] bool, the pairs that the plan may use.
      weights: [n] masses of the targets, up to a factor.
      iterations: K, at least 1.
    """
    tiny = jnp.finfo(logits.dtype).tiny
    taken = acts.any(axis=0)
    masses = jnp.where(taken, weights, 0)
    masses = masses / jnp.maximum(jnp.sum(masses), tiny)  # [n]
    rows = logits.shape[0]
    # Rows first, columns last.
    scaled = logits - sides.log_sum_exp(logits, acts) - np.log(rows)
    columns = sides.log_sum_exp(scaled, acts, axis=0)
    log_plan = scaled - columns + jnp.log(jnp.maximum(masses, tiny))[None]
    plan = jnp.exp(jnp.where(acts, log_plan, 0)) * acts * (masses > 0)[None]

    def iterate(_, factors):
        columns = factors[1]
        rows_factor = (1 / rows) / jnp.maximum(_product(plan, columns), tiny)
        columns = masses / jnp.maximum(_product(plan.T, rows_factor), tiny)
        return rows_factor, columns

    ones = jnp.ones(rows, plan.dtype), jnp.where(masses > 0, 1.0, 0.0).astype(plan.dtype)
    _, columns = jax.lax.fori_loop(1, iterations, iterate, ones)
    plan = plan * columns[None]  # the factor of a row falls out of its mean
    return plan / jnp.maximum(jnp.sum(plan, axis=1, keepdims=True), tiny)


def _product(matrix: jax.Array, vector: jax.Array) -> jax.Array:
    return jnp.einsum("gn,n->g", matrix, vector, precision=jax.lax.Precision.HIGHEST)
