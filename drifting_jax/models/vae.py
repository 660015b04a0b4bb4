"""The variational autoencoder of Stable Diffusion: images to latents, latents to images."""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from drifting_jax.models import layers
from drifting_jax.models.pixels import one_image

PyTree = Any

LOG_VARIANCE_RANGE = (-30.0, 20.0)

# With it float32 products are exact float32 on every accelerator; bfloat16 is not affected.
_HIGHEST = jax.lax.Precision.HIGHEST
_conv1x1 = partial(nn.Conv, kernel_size=(1, 1), precision=_HIGHEST)
_conv3x3 = partial(nn.Conv, kernel_size=(3, 3), padding=1, precision=_HIGHEST)
_linear = partial(nn.Dense, precision=_HIGHEST)


class ResnetBlock(nn.Module):
    """Norm, SiLU and 3x3 convolution, twice, and a residual: [b, h, w, c] -> [b, h, w, features].

    Where the number of channels changes, the residual goes through a 1x1 convolution.
    """

    features: int
    groups: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.silu(layers.GroupNorm(self.groups, self.dtype, name="norm1")(x))
        y = _conv3x3(self.features, dtype=self.dtype, name="conv1")(y)
        y = nn.silu(layers.GroupNorm(self.groups, self.dtype, name="norm2")(y))
        y = _conv3x3(self.features, dtype=self.dtype, name="conv2")(y)
        if x.shape[-1] != self.features:
            x = _conv1x1(self.features, dtype=self.dtype, name="shortcut")(x)
        return x + y


class Attention(nn.Module):
    """Self-attention over all positions, with one head: [b, h, w, d] -> same.

    Logits and softmax are float32.
    """

    groups: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        b, h, w, d = x.shape
        y = layers.GroupNorm(self.groups, self.dtype, name="norm")(x).reshape(b, h * w, d)
        query, key, value = (
            _linear(d, dtype=self.dtype, name=name)(y) for name in ("query", "key", "value")
        )  # [b, t, d]
        logits = jnp.einsum(
            "bqd,bkd->bqk", query, key, precision=_HIGHEST, preferred_element_type=jnp.float32
        )  # [b, t, t]
        weights = jax.nn.softmax(logits * d**-0.5, axis=-1).astype(self.dtype)
        y = jnp.einsum("bqk,bkd->bqd", weights, value, precision=_HIGHEST)
        y = _linear(d, dtype=self.dtype, name="out")(y)
        return x + y.reshape(b, h, w, d)


class MidBlock(nn.Module):
    """Block, attention and block at the lowest resolution: [b, h, w, d] -> same."""

    groups: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        x = ResnetBlock(width, self.groups, self.dtype, name="resnet0")(x)
        x = Attention(self.groups, self.dtype, name="attention")(x)
        return ResnetBlock(width, self.groups, self.dtype, name="resnet1")(x)


class DownBlock(nn.Module):
    """`depth` blocks; with `downsample`, then half the sides, rounded down."""

    features: int
    depth: int
    downsample: bool
    groups: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i in range(self.depth):
            x = ResnetBlock(self.features, self.groups, self.dtype, name=f"resnet{i}")(x)
        if self.downsample:
            # The published networks pad only at the bottom and on the right.
            x = _conv3x3(
                self.features,
                strides=2,
                padding=((0, 1), (0, 1)),
                dtype=self.dtype,
                name="downsample",
            )(x)
        return x


class UpBlock(nn.Module):
    """`depth` blocks; with `upsample`, then twice the sides (nearest neighbour, convolved)."""

    features: int
    depth: int
    upsample: bool
    groups: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i in range(self.depth):
            x = ResnetBlock(self.features, self.groups, self.dtype, name=f"resnet{i}")(x)
        if self.upsample:
            x = x.repeat(2, axis=1).repeat(2, axis=2)
            x = _conv3x3(self.features, dtype=self.dtype, name="upsample")(x)
        return x


class Encoder(nn.Module):
    """Images [b, h, w, c] -> [b, h', w', out_features]; the sides are halved between `widths`."""

    widths: tuple[int, ...]
    depth: int
    out_features: int
    groups: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = _conv3x3(self.widths[0], dtype=self.dtype, name="conv_in")(x)
        last = len(self.widths) - 1
        for i, width in enumerate(self.widths):
            name = f"down{i}"
            x = DownBlock(width, self.depth, i < last, self.groups, self.dtype, name=name)(x)
        x = MidBlock(self.groups, self.dtype, name="mid")(x)
        x = nn.silu(layers.GroupNorm(self.groups, self.dtype, name="norm_out")(x))
        return _conv3x3(self.out_features, dtype=self.dtype, name="conv_out")(x)


class Decoder(nn.Module):
    """Latents [b, h', w', c] -> images [b, h, w, out_features]; "up0" has the lowest resolution."""

    widths: tuple[int, ...]
    depth: int
    out_features: int
    groups: int
    dtype: DTypeLike
    remat: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        up_block = nn.remat(UpBlock) if self.remat else UpBlock
        x = _conv3x3(self.widths[-1], dtype=self.dtype, name="conv_in")(x)
        x = MidBlock(self.groups, self.dtype, name="mid")(x)
        last = len(self.widths) - 1
        for i, width in enumerate(reversed(self.widths)):
            name = f"up{i}"
            x = up_block(width, self.depth, i < last, self.groups, self.dtype, name=name)(x)
        x = nn.silu(layers.GroupNorm(self.groups, self.dtype, name="norm_out")(x))
        return _conv3x3(self.out_features, dtype=self.dtype, name="conv_out")(x)


class VAE(nn.Module):
    """The KL autoencoder of Stable Diffusion. By default latents are 8x smaller, with 4 channels.

    A generator learns scaled latents: `scaling_factor` times a sample of the posterior.

    Attributes:
      in_channels: channels of the images encoded.
      out_channels: channels of the images decoded.
      latent_channels: channels of a latent.
      block_out_channels: channels at each resolution, that of the image first.
      layers_per_block: residual blocks at each resolution in the encoder; the decoder has one more.
      norm_num_groups: groups of each GroupNorm; divides every width.
      scaling_factor: scaled latents over unscaled ones.
      dtype: compute dtype; parameters, norm statistics and softmax are always float32.
      remat: compute each up block of the decoder again in the backward pass instead of keeping its
        activations.
    """

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    scaling_factor: float = 0.18215
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    def setup(self):
        widths, depth = tuple(self.block_out_channels), self.layers_per_block
        groups, dtype, moments = self.norm_num_groups, self.dtype, 2 * self.latent_channels
        self.encoder = Encoder(widths, depth, moments, groups, dtype)
        self.quant_conv = _conv1x1(moments, dtype=dtype)
        self.post_quant_conv = _conv1x1(self.latent_channels, dtype=dtype)
        self.decoder = Decoder(widths, depth + 1, self.out_channels, groups, dtype, self.remat)

    @property
    def downsampling(self) -> int:
        """Side of the image over side of the latent."""
        return 2 ** (len(self.block_out_channels) - 1)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Reconstructs images [b, h, w, in_channels] from the mean of the posterior."""
        return self.decode(self.encode(images)[0])

    def encode(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The posterior of unscaled latents.

        Args:
          images: [b, h, w, in_channels] float32 in [-1, 1].

        Returns:
          Mean and log-variance, each [b, h / f, w / f, latent_channels] float32 with f =
          `downsampling`, sides rounded down. The log-variance is clipped to [-30, 20].

        Raises:
          ValueError: the channels do not fit, or a side is below `downsampling`.
        """
        _check("images", images, self.in_channels)
        if min(images.shape[1:3]) < self.downsampling:
            raise ValueError(
                f"images must have sides of at least {self.downsampling}, "
                f"found {images.shape[1]}x{images.shape[2]}"
            )
        return split_moments(self.quant_conv(self.encoder(images)))

    def decode(self, latents: jax.Array) -> jax.Array:
        """Images of unscaled latents.

        Args:
          latents: [b, h', w', latent_channels] float32.

        Returns:
          [b, h' * f, w' * f, out_channels] float32 with f = `downsampling`, nominally in [-1, 1]
          (not clipped).

        Raises:
          ValueError: the channels do not fit.
        """
        _check("latents", latents, self.latent_channels)
        return self.decoder(self.post_quant_conv(latents)).astype(jnp.float32)

    def decode_scaled(self, latents: jax.Array) -> jax.Array:
        """Images of scaled latents, such as those of a generator; see `decode`."""
        return self.decode(latents / self.scaling_factor)

    @nn.nowrap
    def example_inputs(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shapes of inputs that `__call__` takes."""
        return (one_image(self.downsampling, self.in_channels),)


def decoder_params(params: PyTree) -> PyTree:
    """The parameters that `decode` and `decode_scaled` read, of all those of a `VAE`."""
    return {name: params[name] for name in ("post_quant_conv", "decoder")}


def split_moments(moments: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and clipped log-variance, [..., c] float32, from the encoder's moments [..., 2 * c]."""
    mean, log_variance = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
    return mean, jnp.clip(log_variance, *LOG_VARIANCE_RANGE)


def _check(name: str, x: jax.Array, channels: int) -> None:
    if x.ndim != 4 or x.shape[-1] != channels:
        raise ValueError(f"{name} must be [b, h, w, {channels}], found shape {x.shape}")
