"""Networks of a policy: noise and observations to chunks of actions, in one evaluation.

Each maps noise [c, g, H, d_a] and scaled observations [c, h, d_o] of c conditions to g chunks
[c, g, H, d_a] of each. The condition is encoded once for all samples of a row.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from drifting_jax.config import ConfigDict
from drifting_jax.models import layers
from drifting_jax.models.conditioned import ConditionedMLP, check_rows, unit_norm
from drifting_jax.models.conditions import ContextTokens, VectorCondition
from drifting_jax.models.transformer import Block, Modulation, modulate

_FLOAT = jnp.float32


class ActionTransformer(nn.Module):
    """A transformer with a token for each action, as the image generator (A.2) in one dimension.

    Blocks have adaLN-zero, QK-norm, SwiGLU and RoPE over all tokens. In-context tokens of the
    condition come first. The output layer does not start at zero.

    Attributes:
      width: channels of a token.
      depth: blocks.
      num_heads: heads of an attention; their width is even.
      mlp_ratio: width of a block's feed-forward network over `width`.
      num_context_tokens: in-context tokens; 0 for none.
      condition_width: channels of the encoded observations.
      condition_depth: layers of their network.
    """

    width: int = 256
    depth: int = 2
    num_heads: int = 4
    mlp_ratio: float = 2.0
    num_context_tokens: int = 4
    condition_width: int = 256
    condition_depth: int = 2

    @nn.compact
    def __call__(self, noise: jax.Array, observations: jax.Array) -> jax.Array:
        """noise [c, g, H, d_a] and observations [c, h, d_o] -> [c, g, H, d_a] float32."""
        check_rows(noise, observations)
        head_width = self.width // self.num_heads
        if self.width % self.num_heads or head_width % 2:
            raise ValueError(
                f"width {self.width} must be num_heads times an even head width; "
                f"found {self.num_heads} heads"
            )
        c, g, horizon, size = noise.shape
        of_rows = VectorCondition(self.condition_width, self.condition_depth, name="condition")(
            observations
        )  # [c, condition_width]
        condition = jnp.repeat(of_rows, g, axis=0)  # [c * g, condition_width]
        x = layers.linear(self.width, dtype=_FLOAT, name="input")(
            noise.reshape(c * g, horizon, size)
        )
        x = x + jnp.asarray(layers.sincos_1d(np.arange(horizon), self.width))[None]
        if self.num_context_tokens:
            context = ContextTokens(self.num_context_tokens, self.width, name="context")(of_rows)
            x = jnp.concatenate([jnp.repeat(context, g, axis=0), x], axis=1)
        rotation = layers.rotary_angles(x.shape[1], head_width, dtype=_FLOAT)
        for i in range(self.depth):
            x = Block(
                self.num_heads, self.mlp_ratio, True, True, True, _FLOAT, _FLOAT, name=f"block_{i}"
            )(x, condition, rotation)
        x = x[:, self.num_context_tokens :]  # [c * g, H, width]
        shift, scale = Modulation(self.width, 2, _FLOAT, name="final_modulation")(condition)
        x = modulate(unit_norm("final_norm")(x), shift, scale)
        return layers.linear(size, dtype=_FLOAT, name="output")(x).reshape(noise.shape)


def _make_mlp(config: ConfigDict) -> ConditionedMLP:
    m, c = config.model, config.condition
    return ConditionedMLP(
        width=m.width,
        depth=m.depth,
        mlp_ratio=m.mlp_ratio,
        condition_width=c.width,
        condition_depth=c.depth,
    )


def _make_transformer(config: ConfigDict) -> ActionTransformer:
    m, c = config.model, config.condition
    return ActionTransformer(
        width=m.width,
        depth=m.depth,
        num_heads=m.num_heads,
        mlp_ratio=m.mlp_ratio,
        num_context_tokens=m.num_context_tokens,
        condition_width=c.width,
        condition_depth=c.depth,
    )


_NETWORKS: dict[str, Callable[[ConfigDict], nn.Module]] = {
    "mlp": _make_mlp,
    "transformer": _make_transformer,
}


MODULES: dict[str, type[nn.Module]] = {"mlp": ConditionedMLP, "transformer": ActionTransformer}


def kind_of(model: nn.Module) -> str:
    """The key of `MODULES` of a network."""
    return next(kind for kind, module in MODULES.items() if type(model) is module)


def make_network(config: ConfigDict) -> nn.Module:
    """Returns the network of config.model."""
    return _NETWORKS[config.model.kind](config)
