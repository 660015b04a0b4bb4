"""The paper's field (Algorithm 2, appendix A.1): attraction minus repulsion by normalised kernels.

Every function works on one set, in the dtype that it is given. Callers `vmap` over class rows and
locations; what these share (the distance scale S, the norm of the drift) belongs to `losses`.
"""

import jax
import jax.numpy as jnp
import numpy as np

from drifting_jax.method.fields import sides
from drifting_jax.method.fields.options import DriftOptions, Kernel, Normalization
from drifting_jax.method.fields.sets import ScaledSets, own_pairs, pairwise_distance

ALGORITHM_2 = DriftOptions(affinity_floor=0.0)  # as the paper prints it

_MASKED_LOGIT = -1e30  # finite, so that a set of one sample has no 0/0
# The released code adds this to a sample's scaled distance to itself. No τ reaches so far.
_SELF_DISTANCE = 100.0


def mean_shift(
    sets: ScaledSets, temperature: float | jax.Array, options: DriftOptions = ALGORITHM_2
) -> jax.Array:
    """Weights [g, n] of the targets in the drift of the samples at one temperature.

    Unconditional targets join the negatives; their weights multiply the affinities (A.7).
    """
    if options.combine == "separate" and not options.affinity_floor:
        attracted = side_shares(sets, temperature, options, sets.attracting)
        repelled = side_shares(sets, temperature, options, ~sets.attracting)
        return options.attraction * attracted - options.repulsion * repelled
    return pair_weights(affinities_of(sets, temperature, options), sets.num_negative, options)


def side_shares(
    sets: ScaledSets, temperature: float | jax.Array, options: DriftOptions, side: np.ndarray
) -> jax.Array:
    """Shares [g, n] of the targets of one side in its sum of affinities, which has no floor.

    They are computed from logarithms, so that a side far from a sample keeps its shares.
    """
    logits = kernel_logits(sets.distance, temperature=temperature, kernel=options.kernel)
    logits = sides.acting_logits(logits, ~sets.excluded)
    if options.normalize == "both":
        logits = logits - 0.5 * _log_sum_exp(logits, axis=0)
    logits += sides.log_weights(sets)
    return sides.softmax(logits, ~sets.excluded & side)


def affinities_of(
    sets: ScaledSets, temperature: float | jax.Array, options: DriftOptions
) -> jax.Array:
    """Affinities [g, n] of samples and targets, times the targets' weights."""
    distance = sets.distance + jnp.where(sets.excluded, _SELF_DISTANCE, 0.0)
    logits = kernel_logits(distance, temperature=temperature, kernel=options.kernel)
    a = affinities(logits, floor=options.affinity_floor, normalize=options.normalize)
    if sets.negatives == "two_fold":
        a = a * ~sets.excluded  # the floor lets no pair out, and these are not at the same place
    return a * sets.weights[None, :]


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
        log_norm = 0.5 * (_log_sum_exp(logits, axis=1) + _log_sum_exp(logits, axis=0))
    elif normalize == "targets":
        log_norm = _log_sum_exp(logits, axis=1)
    else:
        log_norm = jnp.zeros_like(logits)
    return jnp.maximum(jnp.exp(logits - log_norm), floor**0.5)


def _log_sum_exp(logits: jax.Array, *, axis: int) -> jax.Array:
    """log Σ exp of finite logits; without the care for infinite ones, XLA fuses all of it."""
    largest = jnp.max(logits, axis=axis, keepdims=True)
    return largest + jnp.log(jnp.sum(jnp.exp(logits - largest), axis=axis, keepdims=True))


def pair_weights(a: jax.Array, num_negative: int, options: DriftOptions) -> jax.Array:
    """Attraction minus repulsion for given affinities (Algorithm 2; (8)-(11)).

    Args:
      a: [g, n] affinities, already multiplied by the targets' weights; negative targets first.
      num_negative: how many of the targets repel.
      options: `combine`, `attraction` and `repulsion` are used.

    Returns:
      w [g, n], with which V(x) = Σ w·(y - x) over the targets y.
    """
    # Factors, where a `where` or slices would keep XLA from fusing the sums. XLA's Triton rewriter
    # for GPUs (jax 0.10) fails on some divisions by the sum of a row; the tests compile this one.
    repels = (jnp.arange(a.shape[1]) < num_negative).astype(a.dtype)[None]
    mass_neg = jnp.sum(a * repels, axis=1, keepdims=True)
    mass_pos = jnp.sum(a * (1 - repels), axis=1, keepdims=True)
    if options.combine == "crossed":
        by_pos, by_neg = mass_neg, mass_pos
    else:
        tiny = jnp.finfo(a.dtype).tiny
        by_pos, by_neg = 1 / jnp.maximum(mass_pos, tiny), 1 / jnp.maximum(mass_neg, tiny)
    attracted, repelled = options.attraction * by_pos, options.repulsion * by_neg
    return a * ((1 - repels) * attracted - repels * repelled)


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
    targets = jnp.concatenate([y_neg, y_pos])
    logits = kernel_logits(
        pairwise_distance(x, targets), temperature=temperature, kernel=options.kernel
    )
    if exclude_self:
        own = own_pairs(*logits.shape)
        logits = jnp.where(own, jnp.asarray(_MASKED_LOGIT, dtype), logits)
    a = affinities(logits, floor=options.affinity_floor, normalize=options.normalize)
    weights = pair_weights(a, y_neg.shape[0], options)
    centre = jnp.mean(targets, axis=0, keepdims=True)
    moved = jnp.einsum("gn,nd->gd", weights, targets - centre, precision=jax.lax.Precision.HIGHEST)
    return moved - jnp.sum(weights, axis=1, keepdims=True) * (x - centre)


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
