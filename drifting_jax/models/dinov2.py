"""DINOv2, a published Vision Transformer. It is frozen; its maps feed the loss or a metric."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from drifting_jax.models import layers, rematerialisation
from drifting_jax.models.pixels import check_images, imagenet_input, one_image, plain_bicubic

# With it float32 products are exact float32 on every accelerator; bfloat16 is not affected.
_HIGHEST = jax.lax.Precision.HIGHEST
_linear = partial(nn.Dense, precision=_HIGHEST)
_NORMAL_02 = nn.initializers.normal(0.02)


def resize_positions(
    positions: jax.Array, rows: int, columns: int, *, offset: float = 0.0
) -> jax.Array:
    """Resizes the position embeddings of a square grid: bicubic (a = -0.75), not antialiased.

    Args:
      positions: [1, 1 + n * n, d] float32: the class token's, then the grid's, row-major.
      rows: rows of the new grid.
      columns: columns of the new grid.
      offset: added to `rows` and `columns` where distances between positions are computed; 0.1 in
        facebookresearch's code, 0 in transformers'.

    Returns:
      [1, 1 + rows * columns, d] float32. The class token's embedding does not change; for an n x n
      grid none does.
    """
    side = round((positions.shape[1] - 1) ** 0.5)
    if (rows, columns) == (side, side):
        return positions
    grid = positions[0, 1:].reshape(side, side, -1)  # [n, n, d]
    grid = plain_bicubic(grid[None], rows, columns, offset=offset)  # [1, rows, columns, d]
    return jnp.concatenate([positions[:, :1], grid.reshape(1, rows * columns, -1)], axis=1)


class Embeddings(nn.Module):
    """Class token and patch tokens with their positions: [b, h, w, 3] -> [b, 1 + t, width]."""

    width: int
    patch_size: int
    position_grid: int
    position_offset: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, pixels: jax.Array) -> jax.Array:
        size, shape = self.patch_size, (1, 1, self.width)
        x = nn.Conv(
            self.width,
            (size, size),
            (size, size),
            "VALID",
            dtype=self.dtype,
            precision=_HIGHEST,
            name="patches",
        )(pixels)  # [b, rows, columns, width]
        b, rows, columns, _ = x.shape
        class_token = self.param("class_token", _NORMAL_02, shape)
        positions = self.param("positions", _NORMAL_02, (1, 1 + self.position_grid**2, self.width))
        positions = resize_positions(positions, rows, columns, offset=self.position_offset)
        first = jnp.broadcast_to(class_token.astype(self.dtype), (b, 1, self.width))
        x = x.reshape(b, rows * columns, self.width)
        x = jnp.concatenate([first, x], axis=1)  # [b, 1 + t, width]
        return x + positions.astype(self.dtype)


class Attention(nn.Module):
    """Multi-head self-attention [b, t, width] -> same; logits and softmax are float32."""

    num_heads: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        b, t, width = x.shape
        head_width = width // self.num_heads
        query, key, value = (
            _linear(width, dtype=self.dtype, name=name)(x).reshape(b, t, self.num_heads, -1)
            for name in ("query", "key", "value")
        )  # [b, t, heads, head_width]
        logits = jnp.einsum(
            "bqnd,bknd->bnqk", query, key, precision=_HIGHEST, preferred_element_type=jnp.float32
        )  # [b, heads, t, t]
        weights = nn.softmax(logits * head_width**-0.5, axis=-1).astype(self.dtype)
        y = jnp.einsum("bnqk,bknd->bqnd", weights, value, precision=_HIGHEST)
        y = rematerialisation.kept(y)
        return _linear(width, dtype=self.dtype, name="out")(y.reshape(b, t, width))


class FeedForward(nn.Module):
    """Per-token network [b, t, width] -> same: two layers with a GELU between them, or SwiGLU.

    One layer computes both the gate and the value of SwiGLU. Its hidden width is 2/3 of
    `mlp_ratio * width`, rounded up to a multiple of 8.
    """

    mlp_ratio: float
    swiglu: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        hidden = int(width * self.mlp_ratio)
        if self.swiglu:
            hidden = -(-int(hidden * 2 / 3) // 8) * 8
            y = _linear(2 * hidden, dtype=self.dtype, name="gate_and_up")(x)
            gate, up = jnp.split(y, 2, axis=-1)
            y = nn.silu(gate) * up
        else:
            y = nn.gelu(_linear(hidden, dtype=self.dtype, name="up")(x), approximate=False)
        return _linear(width, dtype=self.dtype, name="down")(y)


class Block(nn.Module):
    """Attention, then the per-token network: [b, t, width] -> same.

    Both take normed tokens; their outputs are scaled per channel and added to the tokens.
    """

    num_heads: int
    mlp_ratio: float
    swiglu: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = layers.token_norm(rms=False, affine=True, dtype=self.dtype, name="attention_norm")(x)
        y = Attention(self.num_heads, self.dtype, name="attention")(y)
        x = x + self._scaled(y, "attention_scale")
        y = layers.token_norm(rms=False, affine=True, dtype=self.dtype, name="feed_forward_norm")(x)
        y = FeedForward(self.mlp_ratio, self.swiglu, self.dtype, name="feed_forward")(y)
        return x + self._scaled(y, "feed_forward_scale")

    def _scaled(self, y: jax.Array, name: str) -> jax.Array:
        scale = self.param(name, nn.initializers.ones, (y.shape[-1],))
        return y * scale.astype(self.dtype)[None, None]


class DINOv2(nn.Module):
    """The Vision Transformer of DINOv2, without registers. The default sizes are those of ViT-L/14.

    ViT-S has width 384, depth 12 and 6 heads; ViT-B 768, 12 and 12; ViT-g 1536, 40 and 24 with
    SwiGLU. With `dtype` float32 products have full precision on every accelerator; bfloat16 is
    faster.

    Attributes:
      width: channels of a token; `num_heads` divides it.
      depth: number of blocks.
      num_heads: heads of an attention.
      patch_size: side of a patch.
      position_grid: side, in patches, of the grid with learned positions; those of other grids are
        interpolated.
      position_offset: `offset` of `resize_positions`: 0.0 as in transformers, 0.1 as in
        facebookresearch's code (torch.hub) and in evaluations that use it.
      mlp_ratio: width of a block's feed-forward network over `width`.
      swiglu: SwiGLU feed-forward networks instead of GELU.
      feature_blocks: blocks, counted from 1, whose patch tokens `feature_maps` gives.
      final_feature: whether `feature_maps` gives the patch tokens after the final norm.
      image_size: side to which `feature_maps` resizes images; None leaves them as they are.
      resize: how images are resized, as in `pixels.imagenet_input`.
      dtype: compute dtype; parameters, positions, norm statistics and softmax are always float32.
      remat: what blocks keep for the backward pass, of `rematerialisation.POLICIES`.
    """

    width: int = 1024
    depth: int = 24
    num_heads: int = 16
    patch_size: int = 14
    position_grid: int = 37
    position_offset: float = 0.0
    mlp_ratio: float = 4.0
    swiglu: bool = False
    feature_blocks: tuple[int, ...] = ()
    final_feature: bool = True
    image_size: int | None = None
    resize: str = "bicubic"
    dtype: DTypeLike = jnp.float32
    remat: str = "none"

    def setup(self):
        self._check_fields()
        self.embeddings = Embeddings(
            self.width, self.patch_size, self.position_grid, self.position_offset, self.dtype
        )
        block = rematerialisation.with_policy(Block, self.remat)
        self.blocks = [
            block(self.num_heads, self.mlp_ratio, self.swiglu, self.dtype, name=f"block{i + 1}")
            for i in range(self.depth)
        ]
        self.norm = layers.token_norm(rms=False, affine=True, dtype=jnp.float32)

    def __call__(self, pixels: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The plain forward pass.

        Args:
          pixels: [b, h, w, 3] float32, normalised with ImageNet's mean and std
            (`pixels.imagenet_input`); h and w are multiples of `patch_size`.

        Returns:
          The class token [b, width], which is the image's feature in Fréchet distances, and the
          patch tokens [b, h / patch_size, w / patch_size, width]; both float32, after the final
          norm.

        Raises:
          ValueError: `pixels` has another shape.
        """
        tokens = self.norm(self._hidden(pixels)[-1])
        return tokens[:, 0], self._as_map(tokens, pixels)

    def feature_maps(self, images: jax.Array) -> dict[str, jax.Array]:
        """Patch tokens as maps by name, for the drifting loss.

        Args:
          images: [b, h, w, 3] float32 in [-1, 1]; without `image_size`, h and w are multiples of
            `patch_size`.

        Returns:
          "block1", ...: patch tokens after each block of `feature_blocks`, in the compute dtype;
          "final": patch tokens after the final norm, float32. Each is [b, h', w', width].

        Raises:
          ValueError: `images` has another shape.
        """
        pixels = imagenet_input(images, self.image_size, self.resize)
        hidden = self._hidden(pixels)
        maps = {f"block{i}": self._as_map(hidden[i], pixels) for i in self.feature_blocks}
        if self.final_feature:
            maps["final"] = self._as_map(self.norm(hidden[-1]), pixels)
        return maps

    @nn.nowrap
    def example_inputs(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shapes of inputs that `__call__` takes."""
        return (one_image(self.patch_size),)

    def _hidden(self, pixels: jax.Array) -> list[jax.Array]:
        """Tokens [b, 1 + t, width] after the embeddings and after each block."""
        check_images(pixels)
        if pixels.shape[1] % self.patch_size or pixels.shape[2] % self.patch_size:
            raise ValueError(
                f"patch_size {self.patch_size} must divide the image's sides, found "
                f"{pixels.shape[1]}x{pixels.shape[2]}: choose an image_size that it divides"
            )
        hidden = [self.embeddings(pixels.astype(self.dtype))]
        for block in self.blocks:
            hidden.append(block(hidden[-1]))
        return hidden

    def _as_map(self, tokens: jax.Array, pixels: jax.Array) -> jax.Array:
        b, h, w, _ = pixels.shape
        return tokens[:, 1:].reshape(b, h // self.patch_size, w // self.patch_size, self.width)

    def _check_fields(self) -> None:
        if self.width % self.num_heads:
            raise ValueError(
                f"num_heads must divide width {self.width}, found {self.num_heads} heads"
            )
        if any(not 1 <= i <= self.depth for i in self.feature_blocks):
            raise ValueError(
                f"feature_blocks must lie in 1 to {self.depth} (depth), found {self.feature_blocks}"
            )
        if not self.feature_blocks and not self.final_feature:
            raise ValueError("feature_blocks must name a block where final_feature is off")
