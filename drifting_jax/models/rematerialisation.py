"""What the blocks of a network keep for the backward pass, and what they compute again.

| policy    | kept of a block |
|-----------|-----------------|
| `"none"`  | all that the backward pass reads |
| `"dots"`  | the results of products with parameters, of convolutions and of attention |
| `"block"` | its input alone |

The policies change memory and work, no number.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name

POLICIES = ("none", "dots", "block")

_KEPT = "kept"


def kept(x: jax.Array) -> jax.Array:
    """Marks an array that the policy "dots" keeps besides the products with parameters."""
    return checkpoint_name(x, _KEPT)


def with_policy(block: type[nn.Module], policy: str | bool, *, in_scan: bool = False) -> Any:
    """Returns the class of a block that keeps what a policy says.

    Args:
      block: class of a module.
      policy: of `POLICIES`; True means "block" and False means "none".
      in_scan: whether the block runs in a loop, which already keeps the compiler from merging the
        recomputation with the forward pass.

    Raises:
      ValueError: there is no such policy.
    """
    if isinstance(policy, bool):
        policy = "block" if policy else "none"
    if policy not in POLICIES:
        raise ValueError(f"remat must be one of {', '.join(POLICIES)}; found {policy!r}")
    if policy == "none":
        return block
    keeps = _is_kept if policy == "dots" else None
    return nn.remat(block, prevent_cse=not in_scan, policy=keeps)


def _is_kept(primitive: Any, *arguments: Any, **parameters: Any) -> bool:
    policies = jax.checkpoint_policies
    return (
        primitive.name == "conv_general_dilated"
        or policies.dots_with_no_batch_dims_saveable(primitive, *arguments, **parameters)
        or policies.save_only_these_names(_KEPT)(primitive, *arguments, **parameters)
    )
