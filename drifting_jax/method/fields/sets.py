"""What a field is given: one row and location of a feature, and the distances in it."""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

# Subtracting takes about 4x the time of the matmul on a CPU: fine for few channels.
DIRECT_CHANNELS = 32
# Above that, the distances of a sample to so many nearest targets are subtracted too.
EXACT_NEIGHBOURS = 2


@flax.struct.dataclass
class ScaledSets:
    """Samples and targets of one class row and location, in units of the mean distance S.

    Attributes:
      samples: [g, d] generated samples, in coordinates over S/√d.
      targets: [n, d] in the same coordinates: m generated samples z that repel, then u
        unconditional real ones o, then p positives y; n = m + u + p. Unless z is a batch of its
        own, z is the samples themselves.
      distance: [g, n] distances of the samples to all targets, over S.
      weights: [n] weights of the targets: 1 for z and y, unless the caller says otherwise, and
        those of guidance for o, which are 0 at α = 1.
      num_generated: m.
      num_negative: m + u, the targets that repel.
      negatives: what z is, as `DriftOptions.negatives` names it: "own", "kept", "two_fold" or
        "fresh".
      key: of a field that draws random numbers, or None.
    """

    samples: jax.Array
    targets: jax.Array
    distance: jax.Array
    weights: jax.Array
    num_generated: int = flax.struct.field(pytree_node=False)
    num_negative: int = flax.struct.field(pytree_node=False)
    negatives: str = flax.struct.field(pytree_node=False, default="own")
    key: jax.Array | None = None

    @property
    def excluded(self) -> np.ndarray:
        """[g, n] bool: pairs that do not act on each other: a sample and itself, or its half."""
        g, n = self.distance.shape
        return excluded_pairs(g, n, self.num_generated, self.negatives)

    @property
    def repelling(self) -> np.ndarray:
        """[n] bool: generated targets z."""
        return np.arange(self.distance.shape[1]) < self.num_generated

    @property
    def attracting(self) -> np.ndarray:
        """[n] bool: positives y."""
        return np.arange(self.distance.shape[1]) >= self.num_negative

    @property
    def unconditional(self) -> np.ndarray:
        """[n] bool: unconditional real targets o."""
        return ~self.repelling & ~self.attracting

    @property
    def guidance(self) -> jax.Array:
        """[] α - 1: the weight of all unconditional targets over that of a sample's z (A.7)."""
        weight = jnp.sum(self.weights[self.num_generated : self.num_negative])
        return weight / max(acting_negatives(self.num_generated, self.negatives), 1)


def acting_negatives(num_generated: int, negatives: str) -> int:
    """The number of generated targets that repel one sample."""
    return {"own": num_generated - 1, "two_fold": num_generated // 2}.get(negatives, num_generated)


def check_even(negatives: str, generated: int) -> None:
    """Raises ValueError if samples do not split into halves that are each other's negatives."""
    if negatives == "two_fold" and generated % 2:
        raise ValueError(
            f"negatives='two_fold' needs an even number of generated samples; found {generated}"
        )


def excluded_pairs(g: int, n: int, num_generated: int, negatives: str) -> np.ndarray:
    """[g, n] bool: pairs of a sample and a generated target that do not act; z comes first."""
    sample, target = np.arange(g)[:, None], np.arange(n)[None, :]
    if negatives == "own":
        return sample == target
    if negatives == "two_fold":
        return ((sample < g // 2) == (target < g // 2)) & (target < num_generated)
    return np.zeros((g, n), bool)


def own_pairs(g: int, n: int) -> jax.Array:
    """[g, n] bool: pairs of a generated sample with itself, where generated samples come first."""
    return jnp.arange(g)[:, None] == jnp.arange(n)[None, :]


def pairwise_distance(
    x: jax.Array,
    y: jax.Array,
    *,
    squared_minimum: float = 0.0,
    ignored: jax.Array | None = None,
    are_centred: bool = False,
) -> jax.Array:
    """Euclidean distances ‖x_i - y_j‖.

    Few channels are subtracted directly, which is exact for near duplicates. Many go through
    ‖x‖² + ‖y‖² - 2x·y at the highest matmul precision, after the mean of `y` is taken off both
    sets, because a common offset would cancel. The distances of samples that nearly coincide
    cancel all the same, so those to the nearest targets of each sample are subtracted too.

    Args:
      x: [g, d] float.
      y: [n, d] float.
      squared_minimum: lower clip of the squared distance.
      ignored: [g, n] bool, pairs that do not count as nearest, such as a sample and itself.
      are_centred: whether the mean of `y` is taken off both sets already.

    Returns:
      [g, n], not negative.
    """
    if x.shape[-1] <= DIRECT_CHANNELS:
        squared = jnp.sum(jnp.square(x[:, None, :] - y[None, :, :]), axis=-1)
    else:
        if not are_centred:
            centre = jnp.mean(y, axis=0, keepdims=True)
            x, y = x - centre, y - centre
        products = jnp.einsum("gd,nd->gn", x, y, precision=jax.lax.Precision.HIGHEST)
        squared = jnp.sum(x * x, -1)[:, None] + jnp.sum(y * y, -1)[None, :] - 2 * products
        squared = _with_exact_neighbours(squared, x, y, ignored)
    return jnp.sqrt(jnp.maximum(squared, squared_minimum))


def _with_exact_neighbours(
    squared: jax.Array, x: jax.Array, y: jax.Array, ignored: jax.Array | None
) -> jax.Array:
    """Replaces the smallest entries of each row of [g, n] by sums of squared differences.

    Targets of equal entries, such as repeats of one sample, are replaced together.
    """
    column = jnp.arange(y.shape[0])[None, :]
    left = squared if ignored is None else jnp.where(ignored, jnp.inf, squared)
    for _ in range(EXACT_NEIGHBOURS):
        # Reductions instead of top_k, which takes 40 times the matmul on a CPU.
        nearest = left == jnp.min(left, axis=1, keepdims=True)
        chosen = y[jnp.max(jnp.where(nearest, column, 0), axis=1)]  # [g, d]
        exact = jnp.sum(jnp.square(x - chosen), axis=-1, keepdims=True)
        squared = jnp.where(nearest, exact, squared)
        left = jnp.where(nearest, jnp.inf, left)
    return squared
