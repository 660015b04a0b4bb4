"""Inception-v3 of the Fréchet Inception distance: TensorFlow's network of December 2015.

It differs from torchvision's: average pools leave the padding out of the mean, the last block has a
max pool, and there are 1008 classes. Modules have the names of the published files.
"""

from __future__ import annotations

from functools import partial, reduce

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from drifting_jax.models.pixels import check_images, one_image

# With it float32 products are exact float32 on every accelerator.
_HIGHEST = jax.lax.Precision.HIGHEST
_SMALLEST = 75  # side of an image whose last map is one position


class ConvNorm(nn.Module):
    """Weights of a convolution without bias, with the norm that follows folded into them.

    The norm has epsilon 1e-3. Its stored statistics are parameters, since nothing updates them.
    """

    features: int
    kernel_size: tuple[int, int] = (1, 1)

    @nn.compact
    def __call__(self, channels: int) -> tuple[jax.Array, jax.Array]:
        """Returns kernel [kh, kw, channels, features] and bias [features], float32."""
        shape, ones, zeros = (self.features,), nn.initializers.ones, nn.initializers.zeros
        kernel_shape = (*self.kernel_size, channels, self.features)
        kernel = self.param("kernel", nn.initializers.he_normal(), kernel_shape)
        scale = self.param("scale", ones, shape)
        bias = self.param("bias", zeros, shape)
        mean = self.param("mean", zeros, shape)
        variance = self.param("variance", ones, shape)
        factor = scale * jax.lax.rsqrt(variance + 1e-3)
        return kernel * factor.reshape(1, 1, 1, -1), bias - mean * factor


def convolve(
    x: jax.Array, weights: ConvNorm, *, stride: int = 1, padding: str = "SAME"
) -> jax.Array:
    """Convolution, norm and ReLU: [b, h, w, c] -> [b, h', w', features].

    Args:
      x: [b, h, w, c] float32.
      weights: with a kernel of odd sides.
      stride: along both axes.
      padding: "SAME" (zeros, equally on all sides, for stride 1) or "VALID" (none).
    """
    kernel, bias = weights(x.shape[-1])
    if kernel.shape[:2] == (1, 1) and stride == 1:
        y = jnp.einsum("bhwi,io->bhwo", x, kernel[0, 0], precision=_HIGHEST)
        return nn.relu(y + bias.reshape(1, 1, 1, -1))
    columns = x.shape[2] - kernel.shape[1] + 1
    # XLA's CPU convolution takes four times as long with stride 1 and no padding at all. So one
    # column of zeros is added, and its result is cut off.
    spare = padding == "VALID" and stride == 1
    y = jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        ((0, 0), (0, 1)) if spare else padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=_HIGHEST,
    )
    return nn.relu((y[:, :, :columns] if spare else y) + bias.reshape(1, 1, 1, -1))


def pointwise(x: jax.Array, *branches: ConvNorm) -> list[jax.Array]:
    """Several 1x1 convolutions of one map, as one product, with norms but without ReLU.

    [b, h, w, c] -> [b, h, w, features] of each branch.
    """
    kernels, biases = zip(*(weights(x.shape[-1]) for weights in branches), strict=True)
    kernel, bias = jnp.concatenate(kernels, axis=-1), jnp.concatenate(biases)
    y = jnp.einsum("bhwi,io->bhwo", x, kernel[0, 0], precision=_HIGHEST)
    ends = np.cumsum([weights.features for weights in branches])
    return jnp.split(y + bias.reshape(1, 1, 1, -1), ends[:-1], axis=-1)


def average_pool(x: jax.Array) -> jax.Array:
    """Means of 3x3 windows, stride 1, over positions inside the map: [b, h, w, d] -> same."""
    (_, h, w, _), add = x.shape, jnp.add
    sums = _windows(_windows(x, add, axis=1, padding=0.0), add, axis=2, padding=0.0)
    ones = np.ones(max(h, w))
    numbers = np.outer(*(np.convolve(ones[:n], np.ones(3))[1:-1] for n in (h, w)))
    return sums / numbers.astype(np.float32).reshape(1, h, w, 1)


def max_pool(x: jax.Array, *, stride: int) -> jax.Array:
    """Maxima of 3x3 windows: [b, h, w, d] -> same, or [b, (h-1)//2, (w-1)//2, d] with stride 2.

    With stride 1, positions outside the map do not count; with stride 2, all windows lie inside.
    """
    padding = -jnp.inf if stride == 1 else None
    pooled = _windows(x, jnp.maximum, axis=1, padding=padding, stride=stride)
    return _windows(pooled, jnp.maximum, axis=2, padding=padding, stride=stride)


def _windows(x, combine, *, axis: int, padding: float | None, stride: int = 1) -> jax.Array:
    """Combines three neighbours along an axis, by shifted copies.

    XLA's CPU backend fuses these; its `reduce_window` takes two to five times as long.
    """
    if padding is not None:
        widths = [(1, 1) if i == axis else (0, 0) for i in range(x.ndim)]
        x = jnp.pad(x, widths, constant_values=padding)
    length = x.shape[axis] - 2
    shifted = [jax.lax.slice_in_dim(x, i, i + length, stride=stride, axis=axis) for i in range(3)]
    return reduce(combine, shifted)


class InceptionA(nn.Module):
    """[b, h, w, c] -> [b, h, w, 224 + pool_features]: branches 1x1, 5x5, two 3x3, and a pool."""

    pool_features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        one, five, double, pool = pointwise(
            x,
            ConvNorm(64, name="branch1x1"),
            ConvNorm(48, name="branch5x5_1"),
            ConvNorm(64, name="branch3x3dbl_1"),
            ConvNorm(self.pool_features, name="branch_pool"),
        )
        five = convolve(nn.relu(five), ConvNorm(64, (5, 5), name="branch5x5_2"))
        double = convolve(nn.relu(double), ConvNorm(96, (3, 3), name="branch3x3dbl_2"))
        double = convolve(double, ConvNorm(96, (3, 3), name="branch3x3dbl_3"))
        # A mean and an affine map commute; the pool comes second, where there are fewer channels.
        return jnp.concatenate([nn.relu(one), five, double, nn.relu(average_pool(pool))], axis=-1)


class InceptionB(nn.Module):
    """[b, h, w, c] -> [b, (h-1)//2, (w-1)//2, 480 + c]: 3x3, two 3x3, and a pool, of stride 2."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        halve = partial(convolve, stride=2, padding="VALID")
        single = halve(x, ConvNorm(384, (3, 3), name="branch3x3"))
        double = convolve(x, ConvNorm(64, name="branch3x3dbl_1"))
        double = convolve(double, ConvNorm(96, (3, 3), name="branch3x3dbl_2"))
        double = halve(double, ConvNorm(96, (3, 3), name="branch3x3dbl_3"))
        return jnp.concatenate([single, double, max_pool(x, stride=2)], axis=-1)


class InceptionC(nn.Module):
    """[b, h, w, c] -> [b, h, w, 768]: branches 1x1, 7x7 (as 1x7, 7x1), two 7x7, and a pool."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        one, seven, double, pool = pointwise(
            x,
            ConvNorm(192, name="branch1x1"),
            ConvNorm(self.width, name="branch7x7_1"),
            ConvNorm(self.width, name="branch7x7dbl_1"),
            ConvNorm(192, name="branch_pool"),
        )
        seven = convolve(nn.relu(seven), ConvNorm(self.width, (1, 7), name="branch7x7_2"))
        seven = convolve(seven, ConvNorm(192, (7, 1), name="branch7x7_3"))
        double = convolve(nn.relu(double), ConvNorm(self.width, (7, 1), name="branch7x7dbl_2"))
        double = convolve(double, ConvNorm(self.width, (1, 7), name="branch7x7dbl_3"))
        double = convolve(double, ConvNorm(self.width, (7, 1), name="branch7x7dbl_4"))
        double = convolve(double, ConvNorm(192, (1, 7), name="branch7x7dbl_5"))
        return jnp.concatenate([nn.relu(one), seven, double, nn.relu(average_pool(pool))], axis=-1)


class InceptionD(nn.Module):
    """[b, h, w, c] -> [b, (h-1)//2, (w-1)//2, 512 + c]: branches 3x3, 7x7 with 3x3, and a pool."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        halve = partial(convolve, stride=2, padding="VALID")
        three, seven = pointwise(
            x, ConvNorm(192, name="branch3x3_1"), ConvNorm(192, name="branch7x7x3_1")
        )
        three = halve(nn.relu(three), ConvNorm(320, (3, 3), name="branch3x3_2"))
        seven = convolve(nn.relu(seven), ConvNorm(192, (1, 7), name="branch7x7x3_2"))
        seven = convolve(seven, ConvNorm(192, (7, 1), name="branch7x7x3_3"))
        seven = halve(seven, ConvNorm(192, (3, 3), name="branch7x7x3_4"))
        return jnp.concatenate([three, seven, max_pool(x, stride=2)], axis=-1)


class InceptionE(nn.Module):
    """[b, h, w, c] -> [b, h, w, 2048]: branches 1x1, 3x3, two 3x3, and a pool.

    The last 3x3 of a branch is a 1x3 and a 3x1 side by side.

    Attributes:
      pool: "average" or "max".
    """

    pool: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        branches = [
            ConvNorm(320, name="branch1x1"),
            ConvNorm(384, name="branch3x3_1"),
            ConvNorm(448, name="branch3x3dbl_1"),
        ]
        pool = ConvNorm(192, name="branch_pool")
        if self.pool == "average":
            one, three, double, pooled = pointwise(x, *branches, pool)
            pooled = nn.relu(average_pool(pooled))
        else:
            one, three, double = pointwise(x, *branches)
            pooled = convolve(max_pool(x, stride=1), pool)
        three = nn.relu(three)
        double = convolve(nn.relu(double), ConvNorm(384, (3, 3), name="branch3x3dbl_2"))
        maps = [
            nn.relu(one),
            convolve(three, ConvNorm(384, (1, 3), name="branch3x3_2a")),
            convolve(three, ConvNorm(384, (3, 1), name="branch3x3_2b")),
            convolve(double, ConvNorm(384, (1, 3), name="branch3x3dbl_3a")),
            convolve(double, ConvNorm(384, (3, 1), name="branch3x3dbl_3b")),
            pooled,
        ]
        return jnp.concatenate(maps, axis=-1)


class InceptionV3(nn.Module):
    """The network of FID, sFID and the Inception score; all in float32."""

    @nn.compact
    def __call__(self, pixels: jax.Array) -> dict[str, jax.Array]:
        """Features by name.

        Args:
          pixels: [b, h, w, 3] float32, (v - 128) / 128 of v in 0..255; h and w are at least 75,
            and 299 for the metrics.

        Returns:
          Float32 arrays: "64", "192" and "768" [b, d], means of inner maps over the positions;
          "2048" [b, 2048], the same of the last map, which is FID's feature; "spatial"
          [b, h' * w' * 7], sFID's feature: the first seven channels of the 1x1 branch of Mixed_6d,
          positions row-major, channels fastest (2023 at 299x299); "logits" [b, 1008];
          "logits_unbiased" [b, 1008], without the bias, for the Inception score.

        Raises:
          ValueError: `pixels` has another shape.
        """
        check_images(pixels)
        if min(pixels.shape[1:3]) < _SMALLEST:
            height, width = pixels.shape[1:3]
            raise ValueError(
                f"Inception-v3 needs images of {_SMALLEST}x{_SMALLEST} or more (299x299 is usual), "
                f"found {height}x{width}"
            )
        features = {}
        x = pixels.astype(jnp.float32)
        x = convolve(x, ConvNorm(32, (3, 3), name="Conv2d_1a_3x3"), stride=2, padding="VALID")
        x = convolve(x, ConvNorm(32, (3, 3), name="Conv2d_2a_3x3"), padding="VALID")
        x = max_pool(convolve(x, ConvNorm(64, (3, 3), name="Conv2d_2b_3x3")), stride=2)
        features["64"] = x.mean((1, 2))  # of [b, 73, 73, 64]
        x = convolve(x, ConvNorm(80, name="Conv2d_3b_1x1"))
        x = convolve(x, ConvNorm(192, (3, 3), name="Conv2d_4a_3x3"), padding="VALID")
        x = max_pool(x, stride=2)
        features["192"] = x.mean((1, 2))  # of [b, 35, 35, 192]
        for name, pool_features in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
            x = InceptionA(pool_features, name=name)(x)  # [b, 35, 35, 256], then 288
        x = InceptionB(name="Mixed_6a")(x)  # [b, 17, 17, 768]
        x = InceptionC(128, name="Mixed_6b")(x)
        x = InceptionC(160, name="Mixed_6c")(x)
        x = InceptionC(160, name="Mixed_6d")(x)
        features["spatial"] = x[..., :7].reshape(len(x), -1)  # the 1x1 branch comes first
        x = InceptionC(192, name="Mixed_6e")(x)
        features["768"] = x.mean((1, 2))
        x = InceptionD(name="Mixed_7a")(x)  # [b, 8, 8, 1280]
        x = InceptionE("average", name="Mixed_7b")(x)  # [b, 8, 8, 2048]
        x = InceptionE("max", name="Mixed_7c")(x)
        features["2048"] = x.mean((1, 2))
        return features | self._logits(features["2048"])

    @nn.nowrap
    def example_inputs(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shapes of inputs that `__call__` takes."""
        return (one_image(_SMALLEST),)

    def _logits(self, pooled: jax.Array) -> dict[str, jax.Array]:
        kernel = self.param("fc_kernel", nn.initializers.lecun_normal(), (pooled.shape[-1], 1008))
        bias = self.param("fc_bias", nn.initializers.zeros, (1008,))
        unbiased = jnp.dot(pooled, kernel, precision=_HIGHEST)
        return {"logits_unbiased": unbiased, "logits": unbiased + bias.reshape(1, -1)}
