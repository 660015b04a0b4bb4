"""Classifier-free guidance at training time: draws of α and the weight it gives (3.5, A.7)."""

import jax
import jax.numpy as jnp


def cfg_scale_from_uniform(
    uniform: jax.Array, *, minimum: float, maximum: float, power: float
) -> jax.Array:
    """Inverse CDF of the density ∝ α^-power on [minimum, maximum]; log-uniform at power 1.

    Args:
      uniform: [...] float in [0, 1].
      minimum, maximum: 0 < minimum <= maximum.

    Returns:
      α [...] float32.

    Raises:
      ValueError: the range is empty.
    """
    if not 0 < minimum <= maximum:
        raise ValueError(f"need 0 < minimum <= maximum of α; found {minimum} and {maximum}")
    if power == 1:
        scale = minimum * (maximum / minimum) ** uniform
    else:
        low, high = minimum ** (1 - power), maximum ** (1 - power)
        scale = (low + uniform * (high - low)) ** (1 / (1 - power))
    return jnp.clip(scale, minimum, maximum)


def sample_cfg_scale(
    key: jax.Array,
    shape: tuple[int, ...],
    *,
    minimum: float,
    maximum: float,
    power: float,
    probability_of_one: float = 0.0,
) -> jax.Array:
    """Draws the guidance scale α of each class row (A.7).

    Args:
      key: typed PRNG key.
      shape: of the result.
      minimum, maximum, power: of the density; see `cfg_scale_from_uniform`.
      probability_of_one: of α = 1 instead.

    Returns:
      [...] float32 in [minimum, maximum], or 1.
    """
    scale_key, one_key = jax.random.split(key)
    scale = cfg_scale_from_uniform(
        jax.random.uniform(scale_key, shape), minimum=minimum, maximum=maximum, power=power
    )
    return jnp.where(jax.random.bernoulli(one_key, probability_of_one, shape), 1.0, scale)


def unconditional_weight(cfg_scale: jax.Array, *, negatives: int, unconditional: int) -> jax.Array:
    """Weight w = (α-1)·n/max(u, 1) of each of u unconditional samples: [...] as `cfg_scale` (A.7).

    n are the generated samples that repel another: g - 1, where a sample itself does not count.
    The unconditional samples have the share γ = 1 - 1/α of the weight of all negatives.
    """
    return (cfg_scale - 1) * negatives / max(unconditional, 1)
