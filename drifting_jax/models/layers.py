"""Layers that several networks share: linear maps, convolutions, norms, embeddings, patches.

Parameters are float32; `dtype` is the compute dtype. Norm statistics and the angles of `sinusoid`
are always float32.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

xavier_uniform = nn.initializers.xavier_uniform()


def patchify(images: jax.Array, patch_size: int) -> jax.Array:
    """Moves each patch of `patch_size` x `patch_size` pixels into the channels.

    Args:
      images: [b, h, w, c], any dtype.
      patch_size: side of a patch; must divide h and w.

    Returns:
      [b, h / patch_size, w / patch_size, patch_size * patch_size * c]; channels vary fastest, then
      the columns of the patch, then its rows.

    Raises:
      ValueError: `patch_size` does not divide the image's sides.
    """
    if patch_size == 1:
        return images
    b, h, w, c = images.shape
    if h % patch_size or w % patch_size:
        raise ValueError(
            f"patch_size {patch_size} must divide the image's sides, found {h}x{w}: "
            "change the patch size or the image size"
        )
    rows, columns = h // patch_size, w // patch_size
    patches = images.reshape(b, rows, patch_size, columns, patch_size, c)
    # [b, rows, columns, patch row, patch column, c]
    return patches.swapaxes(2, 3).reshape(b, rows, columns, patch_size * patch_size * c)


def unpatchify(patches: jax.Array, patch_size: int) -> jax.Array:
    """Inverse of `patchify`: [b, h', w', ps * ps * c] -> [b, h' * ps, w' * ps, c]."""
    if patch_size == 1:
        return patches
    b, rows, columns, width = patches.shape
    channels = width // (patch_size * patch_size)
    pixels = patches.reshape(b, rows, columns, patch_size, patch_size, channels)
    return pixels.swapaxes(2, 3).reshape(b, rows * patch_size, columns * patch_size, channels)


def sincos_1d(positions: np.ndarray, width: int) -> np.ndarray:
    """Sine-cosine embedding of positions: [n] -> float32 [n, width], sines first."""
    frequencies = 10000.0 ** (-np.arange(width // 2, dtype=np.float64) / (width // 2))
    angles = np.outer(positions, frequencies)  # [n, width / 2]
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


def sincos_2d(side: int, width: int) -> np.ndarray:
    """2-D sine-cosine embedding of a square grid, row-major: float32 [side * side, width].

    The first half of the channels embeds the column, the second half the row.

    Raises:
      ValueError: `width` is not a multiple of 4.
    """
    if width % 4:
        raise ValueError(
            f"width must be a multiple of 4 for 2-D sine-cosine positions, got {width}"
        )
    row, column = np.divmod(np.arange(side * side), side)
    return np.concatenate([sincos_1d(column, width // 2), sincos_1d(row, width // 2)], axis=1)


def sinusoid(values: jax.Array, width: int, *, max_period: float = 10000.0) -> jax.Array:
    """Sinusoidal embedding of scalars: [b] -> float32 [b, width], cosines first."""
    half = width // 2
    frequencies = np.exp(-np.log(max_period) * np.arange(half, dtype=np.float32) / half)
    angles = values.astype(jnp.float32)[:, None] * frequencies[None].astype(np.float32)
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def rotary_angles(
    num_tokens: int, head_width: int, *, dtype: DTypeLike, base: float = 10000.0
) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of 1-D rotary positions (RoPE), each [num_tokens, head_width / 2].

    Frequencies are computed in float32; then frequencies, positions and angles are rounded to
    `dtype`. In bfloat16 positions above 256 are not all distinct. The paper's networks were trained
    so, and their weights need it.
    """
    exponents = jnp.arange(0, head_width, 2, dtype=jnp.float32) / head_width
    frequencies = (1.0 / base**exponents).astype(dtype)
    angles = jnp.outer(jnp.arange(num_tokens, dtype=dtype), frequencies)
    return jnp.cos(angles), jnp.sin(angles)


def apply_rotary(x: jax.Array, cosines: jax.Array, sines: jax.Array) -> jax.Array:
    """Rotates pairs of channels (i, i + d/2) by the token's angles: [b, t, heads, d] -> same."""
    cosines, sines = cosines[None, :, None, :], sines[None, :, None, :]
    first, second = jnp.split(x, 2, axis=-1)  # [b, t, heads, d / 2]
    return jnp.concatenate(
        [first * cosines - second * sines, second * cosines + first * sines], axis=-1
    )


def linear(
    features: int,
    *,
    dtype: DTypeLike,
    kernel_init: Callable[..., jax.Array] = xavier_uniform,
    name: str | None = None,
) -> nn.Dense:
    """Affine map of the last axis; at first the bias is zero and the kernel Xavier-uniform."""
    return nn.Dense(features, dtype=dtype, kernel_init=kernel_init, name=name)


def token_norm(*, rms: bool, affine: bool, dtype: DTypeLike, name: str | None = None) -> nn.Module:
    """Norm over the last axis, epsilon 1e-6: RMSNorm with a scale, or LayerNorm."""
    if rms:
        return nn.RMSNorm(epsilon=1e-6, dtype=dtype, name=name)
    return nn.LayerNorm(
        epsilon=1e-6,
        dtype=dtype,
        use_scale=affine,
        use_bias=affine,
        use_fast_variance=False,
        name=name,
    )


class Conv(nn.Module):
    """Convolution, padded by half of an odd kernel: [b, h, w, c] -> [b, h', w', features].

    An output of at most 4 positions is computed as patches and one matrix product. The sums are the
    same, but XLA's CPU convolution takes over ten times as long at that size.
    """

    features: int
    kernel_size: int
    stride: int = 1
    dtype: DTypeLike = jnp.float32
    use_bias: bool = False
    kernel_init: Callable[..., jax.Array] = nn.initializers.he_normal()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape).astype(self.dtype)
        y = _convolved(x.astype(self.dtype), kernel, self.stride)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            y = y + bias.astype(self.dtype)[None, None, None]
        return y


def _convolved(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    size, _, c, features = kernel.shape
    pad = size // 2
    b, h, w, _ = x.shape
    rows, columns = -(-h // stride), -(-w // stride)
    if rows * columns > 4:
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            [(pad, pad), (pad, pad)],
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
    x = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    taps = [x[:, i : i + h : stride, j : j + w : stride] for i in range(size) for j in range(size)]
    # [b * rows * columns, size * size * c]
    patches = jnp.concatenate(taps, axis=-1).reshape(b * rows * columns, size * size * c)
    return (patches @ kernel.reshape(-1, features)).reshape(b, rows, columns, -1)


class GroupNorm(nn.Module):
    """Group normalisation of [b, h, w, d], epsilon 1e-6, statistics in float32.

    It averages over positions first and over the channels of a group second, so that channels stay
    the fastest axis.

    Raises:
      ValueError: `groups` does not divide the channels.
    """

    groups: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        b, h, w, d = x.shape
        if d % self.groups:
            raise ValueError(
                f"groups must divide the {d} channels that are normalised, got {self.groups}: "
                "choose fewer groups or another width"
            )
        scale = self.param("scale", nn.initializers.ones, (d,))
        bias = self.param("bias", nn.initializers.zeros, (d,))
        x = x.reshape(b, h * w, d).astype(jnp.float32)  # [b, t, d]
        centred = x - self._per_group(x.mean(1))[:, None]
        variance = self._per_group(jnp.square(centred).mean(1))  # [b, d]
        factor = jax.lax.rsqrt(variance + 1e-6) * scale[None]
        y = centred * factor[:, None] + bias[None, None]
        return y.reshape(b, h, w, d).astype(self.dtype)

    def _per_group(self, statistic: jax.Array) -> jax.Array:
        """Replaces a per-channel statistic [b, d] by its mean over the channel's group."""
        b, d = statistic.shape
        grouped = statistic.reshape(b, self.groups, d // self.groups).mean(-1, keepdims=True)
        return jnp.broadcast_to(grouped, (b, self.groups, d // self.groups)).reshape(b, d)
