"""ConvNeXt-V2, a published feature encoder of images. It is frozen; its maps feed the loss."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from drifting_jax.models import layers
from drifting_jax.models.pixels import imagenet_input, one_image


def normalize_locations(feature_map: jax.Array) -> jax.Array:
    """Normalises the channels of each location to mean 0 and std 1: [b, h, w, d] -> same.

    It divides by the population std plus 1e-3. Statistics are float32; the dtype is kept.
    """
    x = feature_map.astype(jnp.float32)
    x = x - x.mean(-1, keepdims=True)
    std = _root(jnp.square(x).mean(-1, keepdims=True))
    return (x / (std + 1e-3)).astype(feature_map.dtype)


class GlobalResponseNorm(nn.Module):
    """Scales each channel by its norm over the map, relative to the mean norm of all channels.

    [b, h, w, d] -> same. Parameters `scale` and `bias` are [1, 1, 1, d]; norms are float32.
    """

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (1, 1, 1, x.shape[-1])
        scale = self.param("scale", nn.initializers.zeros, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        x = x.astype(jnp.float32)
        norm = _root(jnp.square(x).sum((1, 2), keepdims=True))  # [b, 1, 1, d]
        response = norm / (norm.mean(-1, keepdims=True) + 1e-6)
        return (x * (1 + scale * response) + bias).astype(self.dtype)


class Block(nn.Module):
    """Depthwise 7x7 convolution, then two linear maps with a GELU and the response norm between.

    [b, h, w, d] -> same, with a residual connection.
    """

    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        y = nn.Conv(
            width,
            (7, 7),
            padding=3,
            feature_group_count=width,
            dtype=self.dtype,
            name="depthwise",
        )(x)  # [b, h, w, d]
        y = layers.token_norm(rms=False, affine=True, dtype=self.dtype, name="norm")(y)
        y = layers.linear(4 * width, dtype=self.dtype, name="up")(y)  # [b, h, w, 4d]
        y = nn.gelu(y, approximate=False)
        y = GlobalResponseNorm(self.dtype, name="response_norm")(y)
        return x + layers.linear(width, dtype=self.dtype, name="down")(y)


class Trunk(nn.Module):
    """The network without its head: [b, h, w, 3] -> maps "stage1", "stage2", ... [b, h', w', d].

    The sides of each stage's map are half of those of the stage before.
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    patch_size: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
        maps = {}
        for i, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True), start=1):
            if i == 1:  # here the convolution comes before the norm, at other stages after it
                x = self._patches(x, width, self.patch_size, "stem")
                x = self._norm(x, "stem_norm")
            else:
                x = self._norm(x, f"stage{i}_norm")
                x = self._patches(x, width, 2, f"stage{i}_downsample")
            for j in range(depth):
                x = Block(self.dtype, name=f"stage{i}_block{j + 1}")(x)
            maps[f"stage{i}"] = x  # [b, h', w', width]
        return maps

    def _patches(self, x: jax.Array, width: int, size: int, name: str) -> jax.Array:
        kernel, strides = (size, size), (size, size)
        return nn.Conv(width, kernel, strides, "VALID", dtype=self.dtype, name=name)(x)

    def _norm(self, x: jax.Array, name: str) -> jax.Array:
        return layers.token_norm(rms=False, affine=True, dtype=self.dtype, name=name)(x)


class ConvNeXtV2(nn.Module):
    """ConvNeXt-V2 without its classifier. The default sizes are those of Base.

    Tiny has depths (3, 3, 9, 3) and widths (96, 192, 384, 768).

    Attributes:
      depths: blocks of each stage.
      widths: channels of each stage.
      patch_size: side of the stem's patches; each later stage halves the sides of the map.
      image_size: side to which images are resized.
      dtype: compute dtype; parameters and norm statistics are always float32.
      resize: how images are resized, as in `pixels.imagenet_input`.
    """

    depths: tuple[int, ...] = (3, 3, 27, 3)
    widths: tuple[int, ...] = (128, 256, 512, 1024)
    patch_size: int = 4
    image_size: int = 224
    dtype: DTypeLike = jnp.float32
    resize: str = "linear"

    def setup(self):
        if not self.depths or len(self.depths) != len(self.widths):
            raise ValueError(
                f"depths and widths must name the same stages, at least one, "
                f"found {tuple(self.depths)} and {tuple(self.widths)}"
            )
        smallest = self.patch_size * 2 ** (len(self.depths) - 1)
        if self.image_size < smallest:
            raise ValueError(
                f"image_size must be at least {smallest}, so that the last stage has one location, "
                f"found {self.image_size}"
            )
        depths, widths = tuple(self.depths), tuple(self.widths)
        self.trunk = Trunk(depths, widths, self.patch_size, self.dtype)
        self.norm = layers.token_norm(rms=False, affine=True, dtype=jnp.float32)

    def __call__(self, images: jax.Array) -> jax.Array:
        """The pooled features that the published classifier takes.

        Args:
          images: [b, h, w, 3] float32 in [-1, 1], any size.

        Returns:
          [b, widths[-1]] float32: the normed mean of the last stage's map.

        Raises:
          ValueError: `images` has another shape, or the sizes do not fit each other.
        """
        return self._pool(self._stages(images))

    def feature_maps(self, images: jax.Array) -> dict[str, jax.Array]:
        """Maps by name, for the drifting loss.

        Args:
          images: [b, h, w, 3] float32 in [-1, 1], any size.

        Returns:
          "stage1", "stage2", ...: [b, h', w', d] in the compute dtype, normalised at each location
          (`normalize_locations`); "pooled": [b, 1, 1, widths[-1]] float32, the output of
          `__call__` as a map of one location.

        Raises:
          ValueError: `images` has another shape, or the sizes do not fit each other.
        """
        stages = self._stages(images)
        maps = {name: normalize_locations(x) for name, x in stages.items()}
        return {**maps, "pooled": self._pool(stages)[:, None, None]}

    @nn.nowrap
    def example_inputs(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shapes of inputs that `__call__` takes."""
        return (one_image(self.image_size),)

    def _stages(self, images: jax.Array) -> dict[str, jax.Array]:
        return self.trunk(imagenet_input(images, self.image_size, self.resize).astype(self.dtype))

    def _pool(self, stages: dict[str, jax.Array]) -> jax.Array:
        last = stages[f"stage{len(self.depths)}"]
        return self.norm(last.astype(jnp.float32).mean((1, 2)))


def _root(x: jax.Array) -> jax.Array:
    """Square root of x >= 0 with gradient 0 at 0, not infinity: a channel may be all zeros."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1)), 0)
