"""The drifting field of one set of samples: distances, affinities, attraction and repulsion.

Everything here works on one set, in the dtype it is given; rows and locations are `vmap`ped by the
caller, and what they share (the distance scale, the drift norm) belongs to `losses`.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

Kernel = Literal["laplacian", "gaussian"]
Normalization = Literal["both", "targets", "none"]
Combination = Literal["crossed", "separate"]

_DIRECT_CHANNELS = (
    32  # subtracting takes about 4x the time of the matmul on a CPU: fine for few channels
)
_MASKED_LOGIT = -1e30  # finite, so that a set of one sample has no 0/0


@dataclasses.dataclass(frozen=True)
class FieldOptions:
    """The choices that the paper ablates, with Algorithm 2 as the default.

    Attributes:
      kernel: "laplacian" exp(-r/τ) (12), or "gaussian" exp(-r²/2τ²).
      normalize: softmax over targets and over samples ("both"), over "targets" alone, or "none"
        (Table 11).
      combine: "crossed" weighs each side by the other's total, as Algorithm 2 does; "separate"
        divides each side by its own total, as (8)-(11) read literally.
      attraction: factor on V⁺; with `repulsion` it makes the destructive cases of Table 1.
      repulsion: factor on V⁻.
    """

    kernel: Kernel = "laplacian"
    normalize: Normalization = "both"
    combine: Combination = "crossed"
    attraction: float = 1.0
    repulsion: float = 1.0

    def __post_init__(self):
        _require_one_of("kernel", self.kernel, ("laplacian", "gaussian"))
        _require_one_of("normalize", self.normalize, ("both", "targets", "none"))
        _require_one_of("combine", self.combine, ("crossed", "separate"))


def _require_one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}; found {value!r}")


def pairwise_distance(x: jax.Array, y: jax.Array, *, squared_minimum: float = 0.0) -> jax.Array:
    """Euclidean distances ‖x_i - y_j‖.

    Few channels are subtracted directly, which is exact for near duplicates. Many go through
    ‖x‖² + ‖y‖² - 2x·y at the highest matmul precision, after the mean of `y` is taken off both
    sets: a common offset would otherwise cancel only after it had eaten the digits.

    Args:
      x: [g, d] float.
      y: [n, d] float.
      squared_minimum: lower clip of the squared distance.

    Returns:
      [g, n], not negative.
    """
    if x.shape[-1] <= _DIRECT_CHANNELS:
        squared = jnp.sum(jnp.square(x[:, None, :] - y[None, :, :]), axis=-1)
    else:
        centre = jnp.mean(y, axis=0, keepdims=True)
        x, y = x - centre, y - centre
        products = jnp.einsum("gd,nd->gn", x, y, precision=jax.lax.Precision.HIGHEST)
        squared = jnp.sum(x * x, -1)[:, None] + jnp.sum(y * y, -1)[None, :] - 2 * products
    return jnp.sqrt(jnp.maximum(squared, squared_minimum))


def kernel_logits(distance: jax.Array, *, temperature, kernel: Kernel = "laplacian") -> jax.Array:
    """log k(x, y) of the distance (12), any shape."""
    if kernel == "laplacian":
        return -distance / temperature
    return -0.5 * jnp.square(distance / temperature)


def affinities(
    logits: jax.Array, *, floor: float = 0.0, normalize: Normalization = "both"
) -> jax.Array:
    """Normalised kernel k̃(x, y) of Algorithm 2: sqrt(softmax over y · softmax over x).

    Args:
      logits: [g, n] log-kernel between samples and all their targets, both sides together.
      floor: lower clip of the product under the root (the authors' release: 1e-6; the paper: 0).
      normalize: see `FieldOptions`.

    Returns:
      [g, n], not negative.
    """
    if normalize == "both":
        log_norm = 0.5 * (
            jax.nn.logsumexp(logits, axis=1, keepdims=True)
            + jax.nn.logsumexp(logits, axis=0, keepdims=True)
        )
    elif normalize == "targets":
        log_norm = jax.nn.logsumexp(logits, axis=1, keepdims=True)
    else:
        log_norm = jnp.zeros_like(logits)
    return jnp.maximum(jnp.exp(logits - log_norm), floor**0.5)


def drift(
    x: jax.Array,
    y_pos: jax.Array,
    y_neg: jax.Array,
    a_pos: jax.Array,
    a_neg: jax.Array,
    *,
    options: FieldOptions = FieldOptions(),
) -> jax.Array:
    """Attraction minus repulsion for given affinities (Algorithm 2; (8)-(11)).

    Args:
      x: [g, d] samples; y_pos: [p, d] and y_neg: [n, d] targets.
      a_pos: [g, p] and a_neg: [g, n] affinities, weights of the targets already applied.

    Returns:
      V [g, d].
    """
    mass_pos = jnp.sum(a_pos, axis=1, keepdims=True)
    mass_neg = jnp.sum(a_neg, axis=1, keepdims=True)
    if options.combine == "crossed":
        w_pos, w_neg = a_pos * mass_neg, a_neg * mass_pos
    else:
        tiny = jnp.finfo(x.dtype).tiny
        w_pos, w_neg = a_pos / jnp.maximum(mass_pos, tiny), a_neg / jnp.maximum(mass_neg, tiny)
    w_pos, w_neg = options.attraction * w_pos, options.repulsion * w_neg
    highest = jax.lax.Precision.HIGHEST
    v = jnp.einsum("gp,pd->gd", w_pos, y_pos, precision=highest)
    v -= jnp.einsum("gn,nd->gd", w_neg, y_neg, precision=highest)
    if options.combine == "crossed" and options.attraction == options.repulsion:
        return v  # both sides carry the same mass, so the -x terms of (8) cancel exactly
    return v - (jnp.sum(w_pos, 1, keepdims=True) - jnp.sum(w_neg, 1, keepdims=True)) * x


def drifting_field(
    x: jax.Array,
    y_pos: jax.Array,
    y_neg: jax.Array,
    *,
    temperature: float | jax.Array,
    exclude_self: bool = False,
    affinity_floor: float = 0.0,
    options: FieldOptions = FieldOptions(),
) -> jax.Array:
    """The drifting field V(x), Algorithm 2 (appendix A.1).

    Args:
      x: [g, d] samples of q that drift.
      y_pos: [p, d] samples of p, which attract.
      y_neg: [n, d] samples of q, which repel.
      temperature: τ > 0, in the units of the distance.
      exclude_self: whether y_neg is x itself, so that entry i of y_neg does not act on x_i.
      affinity_floor: see `affinities`.
      options: the paper's ablations.

    Returns:
      V [g, d], at least float32. Swapping y_pos and y_neg negates it (3).

    Raises:
      ValueError: for sets that are empty, not [n, d], or of unequal d.
    """
    dtype = jnp.promote_types(jnp.result_type(x, y_pos, y_neg), jnp.float32)
    x, y_pos, y_neg = (jnp.asarray(a, dtype) for a in (x, y_pos, y_neg))
    _check_sets(x, y_pos, y_neg, exclude_self)
    targets = jnp.concatenate([y_pos, y_neg])
    logits = kernel_logits(
        pairwise_distance(x, targets), temperature=temperature, kernel=options.kernel
    )
    p = y_pos.shape[0]
    if exclude_self:
        own = jnp.arange(targets.shape[0])[None, :] == p + jnp.arange(x.shape[0])[:, None]
        logits = jnp.where(own, jnp.asarray(_MASKED_LOGIT, dtype), logits)
    a = affinities(logits, floor=affinity_floor, normalize=options.normalize)
    centre = jnp.mean(targets, axis=0, keepdims=True)
    return drift(x - centre, y_pos - centre, y_neg - centre, a[:, :p], a[:, p:], options=options)


def _check_sets(x: jax.Array, y_pos: jax.Array, y_neg: jax.Array, exclude_self: bool) -> None:
    for name, a in (("x", x), ("y_pos", y_pos), ("y_neg", y_neg)):
        if a.ndim != 2 or a.shape[0] == 0 or a.shape[1] != x.shape[-1]:
            raise ValueError(
                f"{name} must be a non-empty set [n, d] with the d of x; "
                f"found {name} {a.shape} and x {x.shape}"
            )
    if exclude_self and y_neg.shape[0] != x.shape[0]:
        raise ValueError(
            f"exclude_self needs y_neg to be x itself; found {y_neg.shape[0]} negatives "
            f"for {x.shape[0]} samples"
        )
