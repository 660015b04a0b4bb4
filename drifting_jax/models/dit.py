"""The generator of the paper (A.2): a transformer that maps noise to an image in one pass."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from drifting_jax.models import layers, rematerialisation
from drifting_jax.models.condition import ScaleEmbedding, check_given, embed_condition, normal_02
from drifting_jax.models.transformer import Block, Modulation, modulate

PyTree = Any

_ZEROS = nn.initializers.zeros


class FinalLayer(nn.Module):
    """Modulated norm and linear map, zero at first: [b, t, width] -> [b, t, features]."""

    features: int
    rms_norm: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array) -> jax.Array:
        shift, scale = Modulation(x.shape[-1], 2, self.dtype, name="modulation")(condition)
        norm = layers.token_norm(rms=self.rms_norm, affine=False, dtype=self.dtype, name="norm")
        return layers.linear(self.features, dtype=self.dtype, kernel_init=_ZEROS, name="output")(
            modulate(norm(x), shift, scale)
        )


class DiT(nn.Module):
    """Diffusion Transformer `x = f(noise, label, styles, alpha)` (A.2), one evaluation per image.

    The noise is cut into patches of `patch_size`, one token each. `num_context_tokens` tokens made
    from the condition come before them. Positions are learned, RoPE covers all tokens, and blocks
    have adaLN-zero. The output of a new network is zero.

    Attributes:
      image_size: side of the square image (or latent).
      in_channels: channels of the noise.
      out_channels: channels of the image.
      patch_size: side of a patch; divides `image_size`.
      width: channels of a token; `num_heads` divides it.
      depth: number of blocks.
      num_heads: heads of an attention.
      num_classes: labels run from 0 to `num_classes - 1`.
      mlp_ratio: width of a block's feed-forward network over `width`.
      condition_width: channels of the condition; None means `width`.
      num_context_tokens: in-context tokens; 0 for none.
      num_style_books: k, independent style codes of an image.
      styles_per_book: number of codes of a style book; 0 for no style embeddings.
      qk_norm: normalise queries and keys per head.
      swiglu: SwiGLU feed-forward networks instead of GELU.
      rope: rotary positions over all tokens, context tokens first.
      rms_norm: RMSNorm instead of LayerNorm without parameters.
      dtype: compute dtype; parameters are always float32.
      attention_dtype: dtype of queries, keys, values and softmax; None means `dtype`.
      attention_kernel: "fused" for one kernel on a GPU with Triton, or "products" (`KERNELS`).
      remat: what blocks keep for the backward pass, of `rematerialisation.POLICIES`.
      scan: compile one block for all; their parameters are then stacked as "blocks", in place of
        "block_0", "block_1", ... (see `stack_blocks`).
    """

    image_size: int
    in_channels: int
    out_channels: int
    patch_size: int
    width: int
    depth: int
    num_heads: int
    num_classes: int
    mlp_ratio: float = 4.0
    condition_width: int | None = None
    num_context_tokens: int = 16
    num_style_books: int = 32
    styles_per_book: int = 64
    qk_norm: bool = True
    swiglu: bool = True
    rope: bool = True
    rms_norm: bool = True
    dtype: DTypeLike = jnp.float32
    attention_dtype: DTypeLike | None = None
    attention_kernel: str = "products"
    remat: str | bool = "none"
    scan: bool = False

    def setup(self):
        self._check_fields()
        condition_width = self.condition_width or self.width
        self.class_embedding = nn.Embed(
            self.num_classes, condition_width, embedding_init=normal_02, dtype=self.dtype
        )
        if self.styles_per_book:
            self.style_books = self.param(
                "style_books",
                normal_02,
                (self.num_style_books, self.styles_per_book, condition_width),
            )
        self.scale_embedding = ScaleEmbedding(condition_width, self.dtype)
        self.patch_embedding = layers.linear(self.width, dtype=self.dtype)
        self.position_embedding = self.param(
            "position_embedding",
            lambda _: jnp.asarray(layers.sincos_2d(self.image_size // self.patch_size, self.width)),
        )
        if self.num_context_tokens:
            self.context_projection = layers.linear(self.width, dtype=self.dtype)
            self.context_embedding = self.param(
                "context_embedding", normal_02, (self.num_context_tokens, self.width)
            )
        names = ["blocks"] if self.scan else [f"block_{i}" for i in range(self.depth)]
        block = rematerialisation.with_policy(Block, self.remat, in_scan=self.scan)
        self.blocks = [
            block(
                self.num_heads,
                self.mlp_ratio,
                self.qk_norm,
                self.swiglu,
                self.rms_norm,
                self.dtype,
                self.attention_dtype or self.dtype,
                self.attention_kernel,
                name=name,
            )
            for name in names
        ]
        self.final = FinalLayer(self.patch_size**2 * self.out_channels, self.rms_norm, self.dtype)

    def __call__(
        self,
        noise: jax.Array,
        labels: jax.Array,
        styles: jax.Array | None = None,
        cfg_scale: jax.Array | None = None,
    ) -> jax.Array:
        """Generates images from noise.

        Args:
          noise: [b, h, w, in_channels] float32, standard normal.
          labels: [b] int32 in [0, num_classes); or, without styles and cfg_scale, the condition
            itself, [b, condition_width].
          styles: [b, k] int32 in [0, styles_per_book); ignored where `styles_per_book` is 0.
          cfg_scale: [b] float32, alpha >= 1.

        Returns:
          Images [b, h, w, out_channels] float32, nominally in [-1, 1] (not clipped).

        Raises:
          ValueError: shapes do not fit the fields.
        """
        expected = (labels.shape[0], self.image_size, self.image_size, self.in_channels)
        if noise.shape != expected:
            raise ValueError(
                f"noise must have shape {expected} (labels, image_size, in_channels), "
                f"found {noise.shape}"
            )
        if styles is None or cfg_scale is None:
            condition = check_given(labels, self.condition_width or self.width)
        else:
            condition = self.condition(labels, styles, cfg_scale)  # [b, condition_width]
        patches = layers.patchify(noise.astype(self.dtype), self.patch_size)  # [b, h', w', d]
        b, rows, columns, _ = patches.shape
        x = self.patch_embedding(patches.reshape(b, rows * columns, -1))
        x = x + self.position_embedding[None].astype(self.dtype)  # [b, t, width]
        if self.num_context_tokens:
            context = self.context_projection(condition)[:, None]
            context = context + self.context_embedding[None].astype(self.dtype)
            x = jnp.concatenate([context, x], axis=1)  # [b, context + t, width]
        rotation = self._rotation(x.shape[1]) if self.rope else None
        x = self._run_blocks(x, condition, rotation)
        x = self.final(x[:, self.num_context_tokens :], condition)  # [b, t, ps * ps * channels]
        images = layers.unpatchify(x.reshape(b, rows, columns, -1), self.patch_size)
        return images.astype(jnp.float32)

    def condition(self, labels: jax.Array, styles: jax.Array, cfg_scale: jax.Array) -> jax.Array:
        """The condition (A.2): class embedding + style embeddings + 0.02 * embedding of alpha.

        Args:
          labels: [b] int32.
          styles: [b, k] int32; ignored where `styles_per_book` is 0.
          cfg_scale: [b] float32.

        Returns:
          [b, condition_width] in `dtype`.

        Raises:
          ValueError: shapes do not fit the fields.
        """
        return embed_condition(
            labels,
            styles,
            cfg_scale,
            class_embedding=self.class_embedding,
            style_books=self.style_books if self.styles_per_book else None,
            scale_embedding=self.scale_embedding,
        )

    def _run_blocks(
        self, x: jax.Array, condition: jax.Array, rotation: tuple[jax.Array, jax.Array] | None
    ) -> jax.Array:
        if not self.scan:
            for block in self.blocks:
                x = block(x, condition, rotation)
            return x
        over_depth = nn.scan(
            lambda block, x, _: (block(x, condition, rotation), None),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=self.depth,
        )
        return over_depth(self.blocks[0], x, None)[0]

    def _rotation(self, num_tokens: int) -> tuple[jax.Array, jax.Array]:
        dtype = self.attention_dtype or self.dtype
        return layers.rotary_angles(num_tokens, self.width // self.num_heads, dtype=dtype)

    def _check_fields(self) -> None:
        if self.image_size % self.patch_size:
            raise ValueError(
                f"patch_size must divide image_size {self.image_size}, found {self.patch_size}"
            )
        if self.width % self.num_heads or (self.rope and self.width // self.num_heads % 2):
            raise ValueError(
                f"width {self.width} must be num_heads times an even head width, "
                f"found {self.num_heads} heads"
            )


def stack_blocks(params: PyTree) -> PyTree:
    """Parameters of a `DiT` without `scan` -> those of the same with it: `blocks` [depth, ...]."""
    depth = sum(name.startswith("block_") for name in params)
    blocks = [params[f"block_{i}"] for i in range(depth)]
    rest = {name: value for name, value in params.items() if not name.startswith("block_")}
    return rest | {"blocks": jax.tree.map(lambda *x: jnp.stack(x), *blocks)}


def unstack_blocks(params: PyTree) -> PyTree:
    """The inverse of `stack_blocks`."""
    rest = {name: value for name, value in params.items() if name != "blocks"}
    depth = len(jax.tree.leaves(params["blocks"])[0])
    blocks = {
        f"block_{i}": jax.tree.map(lambda x, i=i: x[i], params["blocks"]) for i in range(depth)
    }
    return rest | blocks
