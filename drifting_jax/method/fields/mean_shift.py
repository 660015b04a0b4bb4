"""The paper's field (Algorithm 2, appendix A.1): attraction minus repulsion by normalised kernels.

Every function works on one set, in the dtype that it is given. Callers `vmap` over class rows and
locations; what these share (the distance scale S, the norm of the drift) belongs to `losses`.
"""

import jax
import jax.numpy as jnp

from drifting_jax.method.fields.options import DriftOptions, Kernel, Normalization
from drifting_jax.method.fields.sets import ScaledSets, own_pairs, pairwise_distance

ALGORITHM_2 = DriftOptions(affinity_floor=0.0)  # as the paper prints it

_MASKED_LOGIT = -1e30  # finite, so that a set of one sample has no 0/0
# The released code adds this to a sample's scaled distance to itself. No τ reaches so far.
_SELF_DISTANCE = 100.0


def mean_shift(
    sets: ScaledSets, temperature: float, options: DriftOptions = ALGORITHM_2
) -> jax.Array:
    """V [g, d] of the generated samples at one temperature, in the scaled coordinates of `sets`."""
    own = own_pairs(*sets.distance.shape)
    distance = sets.distance + jnp.where(own, _SELF_DISTANCE, 0.0)
    logits = kernel_logits(distance, temperature=temperature, kernel=options.kernel)
    a = affinities(logits, floor=options.affinity_floor, normalize=options.normalize)
    a = a * sets.weights[None, :]
    m = sets.num_negative
    return drift(sets.generated, sets.positive, sets.negative, a[:, m:], a[:, :m], options=options)


def kernel_logits(
    distance: jax.Array, *, temperature: float | jax.Array, kernel: Kernel = "laplacian"
) -> jax.Array:
    """log k(x, y) of distances of any shape (12)."""
    if kernel == "laplacian":
        return -distance / temperature
    return -0.5 * jnp.square(distance / temperature)


def affinities(
    logits: jax.Array, *, floor: float = 0.0, normalize: Normalization = "both"
) -> jax.Array:
    """The normalised kernel k̃(x, y) of Algorithm 2: sqrt(softmax over y · softmax over x).

    Args:
      logits: [g, n] log-kernel between samples and all their targets, both sides together.
      floor: lower clip of the product under the root (the released code: 1e-6; the paper: 0).
      normalize: see `DriftOptions`.

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
    generated: jax.Array,
    positive: jax.Array,
    negative: jax.Array,
    a_pos: jax.Array,
    a_neg: jax.Array,
    *,
    options: DriftOptions = ALGORITHM_2,
) -> jax.Array:
    """Attraction minus repulsion for given affinities (Algorithm 2; (8)-(11)).

    Args:
      generated: [g, d] samples; positive: [p, d] and negative: [n, d] targets.
      a_pos: [g, p] and a_neg: [g, n] affinities, already multiplied by the targets' weights.
      options: `combine`, `attraction` and `repulsion` are used.

    Returns:
      V [g, d].
    """
    mass_pos = jnp.sum(a_pos, axis=1, keepdims=True)
    mass_neg = jnp.sum(a_neg, axis=1, keepdims=True)
    if options.combine == "crossed":
        by_pos, by_neg = mass_neg, mass_pos
    else:
        tiny = jnp.finfo(a_pos.dtype).tiny
        by_pos, by_neg = 1 / jnp.maximum(mass_pos, tiny), 1 / jnp.maximum(mass_neg, tiny)
    by_pos, by_neg = options.attraction * by_pos, options.repulsion * by_neg
    # Each side is scaled after its product: XLA for GPUs takes a division by the sum of a row for
    # a softmax, and its Triton rewriter then fails on it (jax 0.10).
    highest = jax.lax.Precision.HIGHEST
    v = by_pos * jnp.einsum("gp,pd->gd", a_pos, positive, precision=highest)
    v -= by_neg * jnp.einsum("gn,nd->gd", a_neg, negative, precision=highest)
    if options.combine == "crossed" and options.attraction == options.repulsion:
        return v  # both sides carry the same mass, so the -x terms of (8) cancel exactly
    return v - (by_pos * mass_pos - by_neg * mass_neg) * generated


def drifting_field(
    x: jax.Array,
    y_pos: jax.Array,
    y_neg: jax.Array,
    *,
    temperature: float | jax.Array,
    exclude_self: bool = False,
    options: DriftOptions = ALGORITHM_2,
) -> jax.Array:
    """The drifting field V(x) of Algorithm 2 (appendix A.1).

    Args:
      x: [g, d] samples of q, which drift.
      y_pos: [p, d] samples of p, which attract.
      y_neg: [n, d] samples of q, which repel.
      temperature: τ > 0, in the units of the distance.
      exclude_self: whether y_neg is x itself; then entry i of y_neg does not act on x_i.
      options: the paper's ablations; `temperatures` and `field` are not used.

    Returns:
      V [g, d], at least float32. Swapping y_pos and y_neg negates it (3).

    Raises:
      ValueError: a set is empty, not [n, d], or of another d than x.
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
    a = affinities(logits, floor=options.affinity_floor, normalize=options.normalize)
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
