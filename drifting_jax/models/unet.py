"""A U-Net generator: noise of the image's shape to an image in one pass, by convolutions.

The network is that of DDPM (2006.11239, appendix B) without its time. The condition, that of the
paper (A.2), enters by adaptive group normalisation (2105.05233, 3.1).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from drifting_jax.models import layers, rematerialisation
from drifting_jax.models.condition import Condition, check_given
from drifting_jax.models.transformer import Modulation, SelfAttention, modulate

_ZEROS = nn.initializers.zeros
_conv = functools.partial(layers.Conv, use_bias=True, kernel_init=layers.xavier_uniform)


def drop(x: jax.Array, keys: jax.Array, rate: float) -> jax.Array:
    """Dropout of [b, h, w, d]: zeros a share `rate` of the entries and scales the others up.

    The entries of a sample depend on its key of `keys` [b] alone.
    """
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[1:]))(keys)
    return jnp.where(keep, x / (1 - rate), jnp.zeros_like(x))


class ResidualBlock(nn.Module):
    """Norm, SiLU and 3x3 convolution, twice, and a residual: [b, h, w, c] -> [b, h, w, features].

    The condition scales and shifts the second norm. Dropout comes before the second convolution,
    which is zero at first. Where the number of channels changes, the residual is a linear map.
    """

    features: int
    groups: int
    dropout: float
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        condition: jax.Array | None,
        dropout_keys: jax.Array | None,
        skip: jax.Array | None = None,
    ) -> jax.Array:
        """Maps [b, h, w, c], with the channels of `skip` [b, h, w, c'] behind its own.

        Args:
          x: the map.
          condition: [b, condition_width]; None for a network without one.
          dropout_keys: [b] typed keys; None for no dropout.
          skip: a map of the network's first half; None there.
        """
        if skip is not None:
            x = jnp.concatenate([x, skip], axis=-1)
        y = nn.silu(layers.GroupNorm(self.groups, self.dtype, name="first_norm")(x))
        y = _conv(self.features, 3, dtype=self.dtype, name="first_conv")(y)
        y = layers.GroupNorm(self.groups, self.dtype, name="second_norm")(y)
        if condition is not None:
            modulation = Modulation(self.features, 2, self.dtype, name="modulation")
            shift, scale = (part[:, :, None] for part in modulation(condition))  # [b, 1, 1, d]
            y = modulate(y, shift, scale)
        y = nn.silu(y)
        if dropout_keys is not None:
            y = drop(y, dropout_keys, self.dropout)
        y = _conv(self.features, 3, dtype=self.dtype, kernel_init=_ZEROS, name="second_conv")(y)
        if x.shape[-1] != self.features:
            x = _conv(self.features, 1, dtype=self.dtype, name="residual_conv")(x)
        return x + y


class AttentionBlock(nn.Module):
    """Norm, self-attention over all positions and a residual: [b, h, w, d] -> same.

    It adds zero at first.
    """

    num_heads: int
    groups: int
    dtype: DTypeLike
    attention_dtype: DTypeLike
    attention_kernel: str = "products"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        b, h, w, d = x.shape
        y = layers.GroupNorm(self.groups, self.dtype, name="norm")(x).reshape(b, h * w, d)
        attend = SelfAttention(
            self.num_heads,
            qk_norm=False,
            rms_norm=False,
            dtype=self.dtype,
            attention_dtype=self.attention_dtype,
            attention_kernel=self.attention_kernel,
            out_init=_ZEROS,
            name="attention",
        )
        return x + attend(y, None).reshape(b, h, w, d)


class Downsampling(nn.Module):
    """3x3 convolution with stride 2: [b, h, w, d] -> [b, h / 2, w / 2, d], for even sides."""

    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return _conv(x.shape[-1], 3, stride=2, dtype=self.dtype, name="conv")(x)


class Upsampling(nn.Module):
    """Nearest neighbour, then a 3x3 convolution: [b, h, w, d] -> [b, 2 * h, 2 * w, d]."""

    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.repeat(2, axis=1).repeat(2, axis=2)
        return _conv(x.shape[-1], 3, dtype=self.dtype, name="conv")(x)


class UNet(nn.Module):
    """U-Net `x = f(noise, label, styles, alpha)`, one evaluation per image.

    The noise goes down through levels, each with half the side of the one before, and up again. A
    block on the way up also takes a map of its level from the way down. The output of a new network
    is zero.

    Attributes:
      image_size: side of the square image (or latent).
      in_channels: channels of the noise.
      out_channels: channels of the image.
      patch_size: side of the patches that become one position of the first level; divides
        `image_size`.
      width: channels that `multipliers` multiply.
      num_heads: heads of an attention.
      num_classes: labels run from 0 to `num_classes - 1`.
      multipliers: channels of each level over `width`, that of the largest side first.
      blocks_per_level: residual blocks of a level on the way down; there is one more on the way up.
      attention_sides: sides of the levels, in positions, with an attention after each block. The
        middle, at the smallest side, has one in any case.
      groups: groups of each GroupNorm; divides `width`.
      dropout: share of a block's entries that are set to zero in training; see `dropout_keys`.
      condition_width: channels of the condition; 0 for a network of one class that takes the noise
        alone and reads no label, style or alpha.
      num_style_books: k, independent style codes of an image.
      styles_per_book: number of codes of a style book; 0 for no style embeddings.
      dtype: compute dtype; parameters and norm statistics are always float32.
      attention_dtype: dtype of queries, keys, values and softmax; None means `dtype`.
      attention_kernel: "fused" for one kernel on a GPU with Triton, or "products".
      remat: what blocks keep for the backward pass, of `rematerialisation.POLICIES`.
    """

    image_size: int
    in_channels: int
    out_channels: int
    patch_size: int
    width: int
    num_heads: int
    num_classes: int
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    blocks_per_level: int = 2
    attention_sides: tuple[int, ...] = (16,)
    groups: int = 32
    dropout: float = 0.0
    condition_width: int = 512
    num_style_books: int = 32
    styles_per_book: int = 64
    dtype: DTypeLike = jnp.float32
    attention_dtype: DTypeLike | None = None
    attention_kernel: str = "products"
    remat: str | bool = "none"

    @nn.compact
    def __call__(
        self,
        noise: jax.Array,
        labels: jax.Array,
        styles: jax.Array | None = None,
        cfg_scale: jax.Array | None = None,
        dropout_keys: jax.Array | None = None,
    ) -> jax.Array:
        """Generates images from noise.

        Args:
          noise: [b, h, w, in_channels] float32, standard normal.
          labels: [b] int32 in [0, num_classes); or, without styles and cfg_scale, the condition
            itself, [b, condition_width].
          styles: [b, k] int32 in [0, styles_per_book); ignored where `styles_per_book` is 0.
          cfg_scale: [b] float32, alpha >= 1.
          dropout_keys: [b] typed keys of the samples' dropout masks; None for no dropout.

        Returns:
          Images [b, h, w, out_channels] float32, nominally in [-1, 1] (not clipped).

        Raises:
          ValueError: shapes do not fit the fields, or the fields one another.
        """
        sides = self._sides()
        x = self._patches(noise, labels.shape[0])  # [b, side, side, ps * ps * in_channels]
        condition = self._condition(labels, styles, cfg_scale)
        keys_of_blocks = _keys_of_blocks(dropout_keys)

        def residual(x, name, level, skip=None):
            return self._residual(name, level)(x, condition, next(keys_of_blocks), skip)

        def block(x, half, level, number, skip=None):
            x = residual(x, f"{half}{level}_block{number}", level, skip)
            if sides[level] in self.attention_sides:
                x = self._attention(f"{half}{level}_attention{number}")(x)
            return x

        x = _conv(self._width(0), 3, dtype=self.dtype, name="input_conv")(x)
        skips, last = [x], len(sides) - 1
        for level in range(last + 1):
            for number in range(self.blocks_per_level):
                x = block(x, "down", level, number)
                skips.append(x)  # [b, side, side, width of the level]
            if level < last:
                x = self._resampling(Downsampling, f"down{level}_downsample")(x)
                skips.append(x)
        x = residual(x, "middle_block0", last)
        x = self._attention("middle_attention")(x)
        x = residual(x, "middle_block1", last)
        for level in range(last, -1, -1):
            for number in range(self.blocks_per_level + 1):
                x = block(x, "up", level, number, skips.pop())
            if level:
                x = self._resampling(Upsampling, f"up{level}_upsample")(x)
        x = nn.silu(layers.GroupNorm(self.groups, self.dtype, name="output_norm")(x))
        features = self.patch_size**2 * self.out_channels
        x = _conv(features, 3, dtype=self.dtype, kernel_init=_ZEROS, name="output_conv")(x)
        return layers.unpatchify(x, self.patch_size).astype(jnp.float32)

    @nn.nowrap
    def _patches(self, noise: jax.Array, batch: int) -> jax.Array:
        expected = (batch, self.image_size, self.image_size, self.in_channels)
        if noise.shape != expected:
            raise ValueError(
                f"noise must have shape {expected} (labels, image_size, in_channels), "
                f"found {noise.shape}"
            )
        return layers.patchify(noise.astype(self.dtype), self.patch_size)

    @nn.nowrap
    def _condition(
        self, labels: jax.Array, styles: jax.Array | None, cfg_scale: jax.Array | None
    ) -> jax.Array | None:
        """The condition [b, condition_width], if there is one: see `__call__`."""
        if not self.condition_width:
            return None
        if styles is None or cfg_scale is None:
            return check_given(labels, self.condition_width)
        embed = Condition(
            self.condition_width,
            self.num_classes,
            self.num_style_books,
            self.styles_per_book,
            self.dtype,
            name="condition",
        )
        return embed(labels, styles, cfg_scale)

    @nn.nowrap
    def _residual(self, name: str, level: int) -> nn.Module:
        block = rematerialisation.with_policy(ResidualBlock, self.remat)
        return block(self._width(level), self.groups, self.dropout, self.dtype, name=name)

    @nn.nowrap
    def _attention(self, name: str) -> nn.Module:
        block = rematerialisation.with_policy(AttentionBlock, self.remat)
        dtype, kernel = self.attention_dtype or self.dtype, self.attention_kernel
        return block(self.num_heads, self.groups, self.dtype, dtype, kernel, name=name)

    @nn.nowrap
    def _resampling(self, block: type[nn.Module], name: str) -> nn.Module:
        return rematerialisation.with_policy(block, self.remat)(self.dtype, name=name)

    @nn.nowrap
    def _width(self, level: int) -> int:
        return self.width * self.multipliers[level]

    @nn.nowrap
    def _sides(self) -> list[int]:
        """Sides of the levels in positions. Raises ValueError if the fields do not fit."""
        if self.image_size % self.patch_size:
            raise ValueError(
                f"patch_size must divide image_size {self.image_size}, found {self.patch_size}"
            )
        side, halvings = self.image_size // self.patch_size, len(self.multipliers) - 1
        if halvings < 0 or side < 1 or side % 2**halvings:
            raise ValueError(
                f"image_size / patch_size must divide by 2 for each level after the first; found "
                f"{side} and {halvings + 1} levels: change the multipliers or the patch size"
            )
        sides = [side >> level for level in range(halvings + 1)]
        if not set(self.attention_sides) <= set(sides):
            raise ValueError(
                f"attention_sides must be among the sides of the levels, "
                f"{', '.join(map(str, sides))}; found {tuple(self.attention_sides)}"
            )
        if self.width % self.num_heads:
            raise ValueError(
                f"num_heads must divide the width {self.width}, found {self.num_heads}"
            )
        if not self.condition_width and self.num_classes > 1:
            raise ValueError(
                "a U-Net without a condition (condition_width 0) makes images of one class; found "
                f"{self.num_classes} classes: give it a condition, or the data one class"
            )
        return sides


def _keys_of_blocks(keys: jax.Array | None) -> Iterator[jax.Array | None]:
    """Yields the dropout keys [b] of one residual block after another; None without dropout."""
    for number in itertools.count():
        yield None if keys is None else jax.vmap(jax.random.fold_in, (0, None))(keys, number)
