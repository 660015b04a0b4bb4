"""The condition of a generator (A.2): what it is told of class, styles and guidance scale."""

from __future__ import annotations

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from drifting_jax.models import layers

normal_02 = nn.initializers.normal(0.02)
_SINUSOID_WIDTH = 256
_SCALE_EMBEDDING_GAIN = 0.02  # weight of the CFG scale's embedding in the condition (A.2)


class ScaleEmbedding(nn.Module):
    """Embeds the CFG scale alpha: RMSNorm(MLP(sinusoid(alpha))), [b] -> [b, width]."""

    width: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, cfg_scale: jax.Array) -> jax.Array:
        linear = functools.partial(layers.linear, dtype=self.dtype, kernel_init=normal_02)
        x = layers.sinusoid(cfg_scale, _SINUSOID_WIDTH)
        x = nn.silu(linear(self.width, name="hidden")(x))
        x = linear(self.width, name="out")(x)
        return layers.token_norm(rms=True, affine=True, dtype=self.dtype, name="norm")(x)


def embed_condition(
    labels: jax.Array,
    styles: jax.Array,
    cfg_scale: jax.Array,
    *,
    class_embedding: Callable[[jax.Array], jax.Array],
    style_books: jax.Array | None,
    scale_embedding: Callable[[jax.Array], jax.Array],
) -> jax.Array:
    """The condition (A.2): class embedding + style embeddings + 0.02 * embedding of alpha.

    Args:
      labels: [b] int32.
      styles: [b, k] int32; ignored without style books.
      cfg_scale: [b] float32.
      class_embedding: labels [b] -> [b, condition_width] in the compute dtype.
      style_books: [k, codes, condition_width] float32; None without.
      scale_embedding: cfg_scale [b] -> [b, condition_width].

    Returns:
      [b, condition_width] in the compute dtype.

    Raises:
      ValueError: shapes do not fit.
    """
    b = labels.shape[0]
    if cfg_scale.shape != (b,):
        raise ValueError(f"cfg_scale must have shape ({b},) like labels, found {cfg_scale.shape}")
    y = class_embedding(labels)  # [b, condition_width]
    if style_books is not None:
        expected = (b, len(style_books))
        if styles.shape != expected:
            raise ValueError(
                f"styles must have shape {expected} (labels, num_style_books), found {styles.shape}"
            )
        books = jnp.arange(len(style_books))[None]
        # One after another, as published weights were trained: in bfloat16 each sum rounds.
        for style in jnp.moveaxis(style_books[books, styles].astype(y.dtype), 1, 0):
            y = y + style
    return y + _SCALE_EMBEDDING_GAIN * scale_embedding(cfg_scale)


def check_given(condition: jax.Array, width: int) -> jax.Array:
    """Returns a condition that was made elsewhere, in place of labels without styles and α.

    Raises:
      ValueError: it is not [b, width] of floats.
    """
    if condition.shape[1:] != (width,) or not jnp.issubdtype(condition.dtype, jnp.floating):
        raise ValueError(
            f"without styles and cfg_scale, expected a condition [b, {width}] of floats in place "
            f"of labels; found {condition.shape} {condition.dtype}"
        )
    return condition


class Condition(nn.Module):
    """`embed_condition` with its embeddings: labels, styles, alpha -> [b, width]."""

    width: int
    num_classes: int
    num_style_books: int
    styles_per_book: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, labels: jax.Array, styles: jax.Array, cfg_scale: jax.Array) -> jax.Array:
        style_books = None
        if self.styles_per_book:
            shape = (self.num_style_books, self.styles_per_book, self.width)
            style_books = self.param("style_books", normal_02, shape)
        return embed_condition(
            labels,
            styles,
            cfg_scale,
            class_embedding=nn.Embed(
                self.num_classes,
                self.width,
                embedding_init=normal_02,
                dtype=self.dtype,
                name="class_embedding",
            ),
            style_books=style_books,
            scale_embedding=ScaleEmbedding(self.width, self.dtype, name="scale_embedding"),
        )
