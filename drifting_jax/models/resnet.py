"""ResNet with bottleneck blocks, as in torchvision. It is frozen; its maps feed the loss.

MoCo-v2, SimCLR and others publish their self-supervised encoders as ResNet-50.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from drifting_jax.models import layers, rematerialisation
from drifting_jax.models.pixels import check_images, imagenet_input, one_image


class FrozenBatchNorm(nn.Module):
    """Batch normalisation of [b, h, w, d] with stored statistics, epsilon 1e-5, in float32.

    The statistics are parameters, since nothing updates them. So the variables are {"params": ...},
    as those of every encoder.
    """

    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape, ones, zeros = (x.shape[-1],), nn.initializers.ones, nn.initializers.zeros
        scale = self.param("scale", ones, shape)
        bias = self.param("bias", zeros, shape)
        mean = self.param("mean", zeros, shape)
        variance = self.param("variance", ones, shape)
        factor = scale * jax.lax.rsqrt(variance + 1e-5)
        centred = x.astype(jnp.float32) - mean.reshape(1, 1, 1, -1)
        y = centred * factor.reshape(1, 1, 1, -1) + bias.reshape(1, 1, 1, -1)
        return y.astype(self.dtype)


class ConvNorm(nn.Module):
    """Convolution without bias, padded equally on all sides, then the norm."""

    features: int
    kernel_size: int
    stride: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = layers.Conv(self.features, self.kernel_size, self.stride, self.dtype, name="conv")(x)
        return FrozenBatchNorm(self.dtype, name="norm")(x)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with a residual: [b, h, w, c] -> [b, h', w', 4 * width].

    The 3x3 convolution has the stride ("v1.5").
    """

    width: int
    stride: int
    project: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.relu(ConvNorm(self.width, 1, 1, self.dtype, name="conv1")(x))
        y = nn.relu(ConvNorm(self.width, 3, self.stride, self.dtype, name="conv2")(y))
        y = ConvNorm(4 * self.width, 1, 1, self.dtype, name="conv3")(y)
        if self.project:
            x = ConvNorm(4 * self.width, 1, self.stride, self.dtype, name="shortcut")(x)
        return nn.relu(x + y)


class Trunk(nn.Module):
    """The network without its classifier: [b, h, w, 3] -> every map by name."""

    width: int
    blocks: tuple[int, ...]
    dtype: DTypeLike
    remat: str

    @nn.compact
    def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
        """Maps "stem", "stage1_block1", "stage1_block2", ..., each [b, h', w', d]."""
        x = nn.relu(ConvNorm(self.width, 7, 2, self.dtype, name="stem")(x))  # [b, h/2, w/2, width]
        x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))  # [b, h/4, w/4, width]
        maps = {"stem": x}
        bottleneck = rematerialisation.with_policy(Bottleneck, self.remat)
        for i, depth in enumerate(self.blocks):
            for j in range(depth):
                stride = 2 if i > 0 and j == 0 else 1
                name = f"stage{i + 1}_block{j + 1}"
                x = bottleneck(self.width * 2**i, stride, j == 0, self.dtype, name=name)(x)
                maps[name] = x
        return maps


class ResNet(nn.Module):
    """ResNet-50 by default; other fields give other depths and widths.

    ResNet-101 has blocks (3, 4, 23, 3), ResNet-152 (3, 8, 36, 3); SimCLR's "2x" has width 128.
    With `dtype` float32 products have full precision on every accelerator; bfloat16 is faster.

    Attributes:
      width: channels of the stem; stage i has 4 * width * 2**(i - 1).
      blocks: bottleneck blocks of each stage.
      num_classes: classes of the linear classifier; 0 for no classifier.
      every_k_block: `feature_maps` also gives the output of every k-th block; 0 for none.
      image_size: side to which `feature_maps` resizes images; None leaves them as they are.
      resize: how images are resized, as in `pixels.imagenet_input`.
      dtype: compute dtype; parameters and norms are always float32.
      normalize: whether `feature_maps` takes off ImageNet's mean and divides by its std. SimCLR's
        networks were trained on pixels in [0, 1].
      remat: what blocks keep for the backward pass, of `rematerialisation.POLICIES`.
    """

    width: int = 64
    blocks: tuple[int, ...] = (3, 4, 6, 3)
    num_classes: int = 0
    every_k_block: int = 2
    image_size: int | None = None
    resize: str = "bicubic"
    dtype: DTypeLike = jnp.float32
    normalize: bool = True
    remat: str = "none"

    def setup(self):
        if not self.blocks or min(self.blocks) < 1:
            raise ValueError(f"blocks must be one or more of each stage, found {self.blocks}")
        self.trunk = Trunk(self.width, tuple(self.blocks), self.dtype, self.remat)
        if self.num_classes:
            self.classifier = layers.linear(self.num_classes, dtype=jnp.float32)

    def __call__(self, pixels: jax.Array) -> jax.Array:
        """The plain forward pass.

        Args:
          pixels: [b, h, w, 3] float32, normalised with ImageNet's mean and std
            (`pixels.imagenet_input`).

        Returns:
          float32 logits [b, num_classes]; without a classifier the mean over positions of the last
          stage, [b, 4 * width * 2**(stages - 1)].

        Raises:
          ValueError: `pixels` has another shape.
        """
        maps = self._maps(pixels)
        last = maps[f"stage{len(self.blocks)}_block{self.blocks[-1]}"]
        pooled = last.astype(jnp.float32).mean((1, 2))
        if not self.num_classes:
            return pooled
        with jax.default_matmul_precision("highest"):
            return self.classifier(pooled)

    def feature_maps(self, images: jax.Array) -> dict[str, jax.Array]:
        """Maps by name, for the drifting loss.

        Args:
          images: [b, h, w, 3] float32 in [-1, 1], any size.

        Returns:
          "stem" (after the max pool), "stage1", "stage2", ...: [b, h', w', d] in the compute dtype;
          "stage1_block2", ...: output of every `every_k_block`-th block, except the last of a
          stage, which is "stage1", ...

        Raises:
          ValueError: `images` has another shape.
        """
        pixels = imagenet_input(images, self.image_size, self.resize, normalize=self.normalize)
        every = self._maps(pixels)
        maps = {"stem": every["stem"]}
        for i, depth in enumerate(self.blocks, start=1):
            if self.every_k_block:
                for j in range(self.every_k_block, depth, self.every_k_block):
                    maps[f"stage{i}_block{j}"] = every[f"stage{i}_block{j}"]
            maps[f"stage{i}"] = every[f"stage{i}_block{depth}"]
        return maps

    @nn.nowrap
    def example_inputs(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shapes of inputs that `__call__` takes."""
        return (one_image(32),)

    def _maps(self, pixels: jax.Array) -> dict[str, jax.Array]:
        check_images(pixels)
        with jax.default_matmul_precision("highest"):
            return self.trunk(pixels.astype(self.dtype))
