"""Differences of log-density gradients: the kernel gradient, its sharp form, and the KL/χ² mix."""

import jax
import jax.numpy as jnp

from drifting_jax.method.fields import sides
from drifting_jax.method.fields.mean_shift import kernel_logits
from drifting_jax.method.fields.options import DriftOptions
from drifting_jax.method.fields.sets import ScaledSets

_RATIO_RANGE = (0.1, 10.0)


def kernel_gradient(
    sets: ScaledSets, temperature: float | jax.Array, options: DriftOptions
) -> jax.Array:
    """Weights [g, n] of V = ∇log Σ k(x, y) - ∇log Σ k(x, z) (2605.10727).

    With the Laplacian kernel each side is a softmax mean of unit directions, with the Gaussian one
    the mean shift over τ². Guidance is linear.
    """
    logits = kernel_logits(sets.distance, temperature=temperature, kernel=options.kernel)
    logits += sides.log_weights(sets)
    if options.kernel == "laplacian":
        pull = sides.inverse_distance(sets) / temperature
    else:
        pull = jnp.full_like(sets.distance, 1 / jnp.square(temperature))
    return sides.linear_guidance(sets, lambda acts: sides.softmax(logits, acts) * pull)


def sharp(sets: ScaledSets, temperature: float | jax.Array, options: DriftOptions) -> jax.Array:
    """Weights [g, n] of V = Σ k·(y - x) / Σ h - the same of z (2604.06333).

    h(r) = ∫_r^∞ s·k(s) ds, so V is a gradient: for the Laplacian kernel h = τ(r + τ)exp(-r/τ), a
    Matérn kernel; a Gaussian is its own, h = τ²k. Guidance is linear.
    """
    logits = kernel_logits(sets.distance, temperature=temperature, kernel=options.kernel)
    logits += sides.log_weights(sets)
    if options.kernel == "laplacian":
        log_h = logits + jnp.log(temperature * (sets.distance + temperature))
    else:
        log_h = logits + 2 * jnp.log(jnp.asarray(temperature, logits.dtype))

    def attraction(acts):
        difference = sides.acting_logits(logits, acts) - sides.log_sum_exp(log_h, acts)
        return jnp.exp(jnp.where(acts, difference, 0)) * acts

    return sides.linear_guidance(sets, attraction)


def kl_chi2(sets: ScaledSets, temperature: float | jax.Array, options: DriftOptions) -> jax.Array:
    """Weights [g, n] of V = (p̂/q̂ + q̂/p̂)·(∇log p̂ - ∇log q̂), Gaussian kernel (2603.10592).

    p̂ and q̂ are the mean kernels to y and z; each ratio is clipped to [0.1, 10]. The ratios know no
    guidance, the difference of gradients is guided linearly.
    """
    logits = kernel_logits(sets.distance, temperature=temperature, kernel="gaussian")
    logits += sides.log_weights(sets)

    def attraction(acts):
        return sides.softmax(logits, acts) / jnp.square(temperature)

    def log_density(side):
        acts = ~sets.excluded & side
        weight = jnp.sum(sets.weights[None] * acts, axis=1, keepdims=True)
        tiny = jnp.finfo(logits.dtype).tiny
        return sides.log_sum_exp(logits, acts) - jnp.log(jnp.maximum(weight, tiny))

    log_ratio = log_density(sets.attracting) - log_density(sets.repelling)  # [g, 1]
    low, high = (jnp.log(jnp.asarray(x, logits.dtype)) for x in _RATIO_RANGE)
    factor = 2 * jnp.cosh(jnp.clip(log_ratio, low, high))
    return factor * sides.linear_guidance(sets, attraction)
