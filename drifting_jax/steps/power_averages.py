"""Averages of parameters whose width is chosen after training (EDM2, arXiv 2312.02696, 3.1 and C).

After t updates, a power-function average weighs the parameters of update s by
p(s) = (γ + 1) s^γ / t^(γ + 1), integrated from s - 1 to s. Its width σ is the standard deviation of
p as a share of t. A sum of such averages of several widths and times is again close to one.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any


class Fit(NamedTuple):
    """A sum of averages that stands for another.

    Attributes:
      coefficients: [n] float64, of the averages.
      error: norm of the difference of the profiles, relative to that of the wanted one.
    """

    coefficients: np.ndarray
    error: float


def gamma_of(width: float) -> float:
    """Returns γ ≥ 0 of the profile of a width in (0, 12^-½]: the inverse of `width_of`.

    Raises:
      ValueError: no profile has this width.
    """
    if not 0 < width <= 12**-0.5:
        raise ValueError(f"expected a width above 0 and at most 12^-0.5; found {width}")
    inverse = width**-2.0  # (γ + 2)² (γ + 3) = (γ + 1) / σ²
    return max(0.0, float(np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse]).real.max()))


def width_of(gamma: float) -> float:
    """Returns σ = (γ + 1)^½ (γ + 2)^-1 (γ + 3)^-½, the relative width of a profile."""
    return float((gamma + 1) ** 0.5 / (gamma + 2) / (gamma + 3) ** 0.5)


def update_average(
    average: PyTree, params: PyTree, *, width: float, updates: jax.Array | int
) -> PyTree:
    """Returns β·average + (1 - β)·params with β = (1 - 1/t)^(γ + 1).

    Args:
      average: after t - 1 updates; of no effect if t is 1.
      params: after t updates.
      width: the relative width σ.
      updates: [] t, this update included.
    """
    # 1 - 1/t itself would lose most of its digits in float32.
    log_beta = (gamma_of(width) + 1) * jnp.log1p(-1 / jnp.asarray(updates, jnp.float32))
    share = -jnp.expm1(log_beta)
    return jax.tree.map(lambda a, p: a + share * (p - a), average, params)


def fit_average(
    widths: Sequence[float], times: Sequence[float], *, width: float, time: float
) -> Fit:
    """Returns the sum of averages whose profile is nearest to a wanted one, by least squares.

    Args:
      widths: [n] of the averages that are there.
      times: [n] their numbers of updates, at most `time`.
      width: that is wanted.
      time: the number of updates after which it is wanted.
    """
    gammas = np.array([gamma_of(each) for each in widths])
    ends, gamma = np.asarray(times, np.float64) / time, gamma_of(width)
    products = _products(gammas[:, None], ends[:, None], gammas, ends)
    wanted, square = _products(gammas, ends, gamma, 1.0), _products(gamma, 1.0, gamma, 1.0)
    norms = np.sqrt(np.diag(products))  # of early profiles they are far larger
    scaled = np.linalg.lstsq(products / np.outer(norms, norms), wanted / norms, rcond=1e-12)[0]
    x = scaled / norms
    left = float(square - 2 * x @ wanted + x @ products @ x)
    return Fit(x, max(left / float(square), 0.0) ** 0.5)


def _products(a: Any, a_end: Any, b: Any, b_end: Any) -> np.ndarray:
    """∫ p_a p_b of profiles of exponents a and b that end at the times a_end and b_end."""
    first = np.minimum(a_end, b_end)
    powers = (first / a_end) ** (a + 1) * (first / b_end) ** (b + 1)
    return (a + 1) * (b + 1) / (a + b + 1) * powers / first
