"""The feature encoder (A.3): a GroupNorm ResNet, trained as a masked autoencoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from drifting_jax.models import layers, rematerialisation
from drifting_jax.models.pixels import one_image


class Reconstruction(flax.struct.PyTreeNode):
    """What the autoencoder returns.

    Attributes:
      patches: [b, h', w', c * ps * ps] float32, reconstruction of the patchified input.
      logits: [b, num_classes] float32, the linear classifier's, from the masked input.
    """

    patches: jax.Array
    logits: jax.Array


class MaskedLoss(flax.struct.PyTreeNode):
    """Losses of the autoencoder per example, each [b] float32.

    Attributes:
      total: `lam * classification + (1 - lam) * reconstruction`.
      reconstruction: squared error over the masked positions.
      classification: cross entropy of the linear classifier.
    """

    total: jax.Array
    reconstruction: jax.Array
    classification: jax.Array


class ConvNorm(nn.Module):
    """Convolution without bias, then GroupNorm: [b, h, w, c] -> [b, h', w', features]."""

    features: int
    kernel_size: int
    groups: int
    stride: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = layers.Conv(self.features, self.kernel_size, self.stride, self.dtype, name="conv")(x)
        return layers.GroupNorm(self.groups, self.dtype, name="norm")(x)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a residual connection, projected where the shape changes."""

    features: int
    groups: int
    stride: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = ConvNorm(self.features, 3, self.groups, self.stride, self.dtype, name="conv1")(x)
        y = ConvNorm(self.features, 3, self.groups, 1, self.dtype, name="conv2")(nn.relu(y))
        if self.stride != 1 or x.shape[-1] != self.features:
            x = ConvNorm(self.features, 1, self.groups, self.stride, self.dtype, name="shortcut")(x)
        return nn.relu(x + y)


class Encoder(nn.Module):
    """ResNet without a downsampling stem: patchified input [b, h', w', d] -> named maps."""

    width: int
    blocks: tuple[int, ...]
    groups: int
    dtype: DTypeLike
    remat: str | bool

    @nn.compact
    def __call__(self, x: jax.Array, every_k_block: int = 0) -> dict[str, jax.Array]:
        """Maps "stem", "stage1", ..., and those of every `every_k_block`-th block; 0 for none."""
        # [b, h', w', width]
        x = nn.relu(ConvNorm(self.width, 3, self.groups, 1, self.dtype, name="stem")(x))
        maps = {"stem": x}
        block = rematerialisation.with_policy(BasicBlock, self.remat)
        for i, depth in enumerate(self.blocks):
            stage = f"stage{i + 1}"
            for j in range(depth):
                stride = 2 if i > 0 and j == 0 else 1
                name = f"{stage}_block{j + 1}"
                x = block(self.width * 2**i, self.groups, stride, self.dtype, name=name)(x)
                if every_k_block and (j + 1) % every_k_block == 0:
                    maps[name] = x
            x = layers.GroupNorm(self.groups, self.dtype, name=f"{stage}_norm")(x)
            maps[stage] = x  # [b, h' / 2**i, w' / 2**i, width * 2**i]
        return maps


class UpBlock(nn.Module):
    """Resizes to the skip connection's grid, concatenates it, and refines with two convolutions."""

    features: int
    groups: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array, skip: jax.Array) -> jax.Array:
        if x.shape[1:3] != skip.shape[1:3]:
            x = jax.image.resize(x, (*skip.shape[:3], x.shape[-1]), "bilinear")
        x = jnp.concatenate([x, skip], axis=-1)  # [b, h, w, d + d of skip]
        x = layers.GroupNorm(self.groups, self.dtype, name="concat_norm")(x)
        x = nn.relu(ConvNorm(self.features, 3, self.groups, 1, self.dtype, name="conv1")(x))
        return nn.relu(ConvNorm(self.features, 3, self.groups, 1, self.dtype, name="conv2")(x))


class Decoder(nn.Module):
    """U-Net decoder: from the map of the last stage back through every stage to the stem's grid.

    Returns [b, h', w', out_features] on the grid of the stem.
    """

    out_features: int
    num_stages: int
    groups: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, maps: dict[str, jax.Array]) -> jax.Array:
        x = maps[f"stage{self.num_stages}"]
        x = nn.relu(ConvNorm(x.shape[-1], 3, self.groups, 1, self.dtype, name="bridge")(x))
        for name in [*(f"stage{i}" for i in range(self.num_stages - 1, 0, -1)), "stem"]:
            skip = maps[name]
            x = UpBlock(skip.shape[-1], self.groups, self.dtype, name=f"up_{name}")(x, skip)
        kernel_init = layers.xavier_uniform
        return nn.Conv(
            self.out_features, (1, 1), dtype=self.dtype, kernel_init=kernel_init, name="head"
        )(x)


class ResNetMAE(nn.Module):
    """GroupNorm ResNet whose maps feed the drifting loss, with the decoder that trains it (A.3).

    Attributes:
      in_channels: channels of the image or latent.
      width: base width C; stage i has C * 2**(i - 1) channels.
      blocks: basic blocks of each stage.
      input_patch_size: side of the patches the image is cut into first (8 for 256x256 pixels).
      mask_patch_size: side of the squares of the patchified grid that are masked together.
      groups: groups of each GroupNorm; divides `width`.
      num_classes: classes of the linear classifier.
      every_k_block: `feature_maps` also gives the output of every k-th block; 0 for none.
      dtype: compute dtype; parameters and norm statistics are always float32.
      remat: what blocks of the encoder keep for the backward pass, of
        `rematerialisation.POLICIES`.
    """

    in_channels: int
    width: int
    num_classes: int
    blocks: tuple[int, ...] = (3, 4, 6, 3)
    input_patch_size: int = 1
    mask_patch_size: int = 2
    groups: int = 32
    every_k_block: int = 2
    dtype: DTypeLike = jnp.float32
    remat: str | bool = "none"

    def setup(self):
        blocks = tuple(self.blocks)
        self.encoder = Encoder(self.width, blocks, self.groups, self.dtype, self.remat)
        features = self.in_channels * self.input_patch_size**2
        self.decoder = Decoder(features, len(self.blocks), self.groups, self.dtype)
        self.classifier = layers.linear(self.num_classes, dtype=self.dtype)

    def __call__(self, images: jax.Array, mask: jax.Array) -> Reconstruction:
        """Reconstructs masked images and classifies them.

        Args:
          images: [b, h, w, in_channels] float32 in [-1, 1], or latents.
          mask: [b, h', w'] bool or float, 1 where a position of the patchified grid is hidden.

        Returns:
          `Reconstruction` with patches [b, h', w', ps * ps * in_channels] and logits
          [b, num_classes].

        Raises:
          ValueError: channels or mask do not fit.
        """
        x = self._patchify(images)
        if mask.shape != x.shape[:3]:
            raise ValueError(
                f"mask must have shape {x.shape[:3]} (the patchified grid), found {mask.shape}"
            )
        visible = 1 - mask.astype(self.dtype)[..., None]  # [b, h', w', 1]
        maps = self.encoder(x.astype(self.dtype) * visible)
        logits = self.classifier(maps[f"stage{len(self.blocks)}"].mean((1, 2)))
        patches = self.decoder(maps)
        return Reconstruction(patches.astype(jnp.float32), logits.astype(jnp.float32))

    def feature_maps(self, images: jax.Array) -> dict[str, jax.Array]:
        """Maps of the unmasked image, by name, for the drifting loss (A.5).

        Args:
          images: [b, h, w, in_channels] float32 in [-1, 1], or latents.

        Returns:
          "input": the patchified input [b, h', w', ps * ps * in_channels]; "stem", "stage1", ...:
          [b, h'', w'', d]; "stage1_block2", ...: output of every `every_k_block`-th block.

        Raises:
          ValueError: channels do not fit.
        """
        x = self._patchify(images)
        return {"input": x, **self.encoder(x.astype(self.dtype), self.every_k_block)}

    @nn.nowrap
    def example_inputs(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shapes of inputs that `__call__` takes: an image and its mask."""
        side = 2 ** (len(self.blocks) - 1)  # of the patchified grid; the last stage has 1 position
        mask = jax.ShapeDtypeStruct((1, side, side), jnp.float32)
        return one_image(side * self.input_patch_size, self.in_channels), mask

    def _patchify(self, images: jax.Array) -> jax.Array:
        if images.ndim != 4 or images.shape[-1] != self.in_channels:
            raise ValueError(
                f"images must be [b, h, w, {self.in_channels}], found shape {images.shape}"
            )
        return layers.patchify(images, self.input_patch_size)


def feature_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that `feature_maps` needs: all but the decoder's and the classifier's."""
    return {"encoder": params["encoder"]}


def draw_mask(
    key: jax.Array,
    batch: int,
    height: int,
    width: int,
    *,
    mask_patch_size: int,
    ratio_min: float = 0.5,
    ratio_max: float = 0.5,
) -> jax.Array:
    """Draws a random mask of squares, each hidden independently (A.3).

    Each image draws a ratio, uniform in [ratio_min, ratio_max]. Each of its squares of
    `mask_patch_size` x `mask_patch_size` positions is hidden with that probability.

    Args:
      key: typed PRNG key.
      batch: number of images b.
      height: rows h' of the patchified grid; a multiple of `mask_patch_size`.
      width: columns w' of the patchified grid; a multiple of `mask_patch_size`.
      mask_patch_size: side of a square.
      ratio_min: smallest probability of hiding a square, in [0, 1].
      ratio_max: largest probability of hiding a square, in [0, 1].

    Returns:
      [b, h', w'] float32, 1 where hidden.

    Raises:
      ValueError: the squares do not tile the grid, or the ratios are not ordered in [0, 1].
    """
    if height % mask_patch_size or width % mask_patch_size:
        raise ValueError(
            f"mask_patch_size {mask_patch_size} must divide the patchified grid, "
            f"found {height}x{width}: use another mask_patch_size"
        )
    if not 0 <= ratio_min <= ratio_max <= 1:
        raise ValueError(
            f"mask ratios must satisfy 0 <= ratio_min <= ratio_max <= 1, "
            f"found {ratio_min} and {ratio_max}"
        )
    ratio_key, square_key = jax.random.split(key)
    ratio = jax.random.uniform(ratio_key, (batch,), minval=ratio_min, maxval=ratio_max)
    shape = (batch, height // mask_patch_size, width // mask_patch_size)
    hidden = jax.random.uniform(square_key, shape) < ratio[:, None, None]
    hidden = hidden.repeat(mask_patch_size, 1).repeat(mask_patch_size, 2)
    return hidden.astype(jnp.float32)


def mae_loss(
    output: Reconstruction,
    patches: jax.Array,
    mask: jax.Array,
    labels: jax.Array,
    *,
    classification_weight: float | jax.Array,
) -> MaskedLoss:
    """Loss of each example: masked reconstruction and classification (A.3).

    Args:
      output: of `ResNetMAE.__call__`.
      patches: [b, h', w', d] float32, the patchified input without the mask.
      mask: [b, h', w'], 1 where hidden.
      labels: [b] int32.
      classification_weight: lam in [0, 1], a number or a scalar array.

    Returns:
      `MaskedLoss`. The squared error is summed over channels and masked positions and divided by
      the number of masked positions (at least 1).
    """
    mask = mask.astype(jnp.float32)
    error = jnp.square(output.patches - patches).sum(-1)  # [b, h', w']
    reconstruction = (error * mask).sum((1, 2)) / jnp.maximum(mask.sum((1, 2)), 1)
    log_probabilities = jax.nn.log_softmax(output.logits)
    classification = -jnp.take_along_axis(log_probabilities, labels[:, None], axis=1)[:, 0]
    total = classification_weight * classification + (1 - classification_weight) * reconstruction
    return MaskedLoss(total, reconstruction, classification)
