"""The original names of Stable Diffusion's autoencoder, as in `vae-ft-mse-840000-ema-pruned`."""

import re
from collections.abc import Mapping

import numpy as np

_ORIGINAL = re.compile(r"(encoder|decoder)\.(down\.\d+\.|up\.\d+\.|mid\.|norm_out\.).*")
_UP = re.compile(r"decoder\.up\.(\d+)\..*")
# Original name -> diffusers' name, each pattern on the whole name.
_RULES = {
    r"(encoder|decoder)\.norm_out\.(\w+)": r"\1.conv_norm_out.\2",
    r"(encoder|decoder)\.mid\.attn_1\.norm\.(\w+)": r"\1.mid_block.attentions.0.group_norm.\2",
    r"(encoder|decoder)\.mid\.attn_1\.([qkv])\.(\w+)": r"\1.mid_block.attentions.0.to_\2.\3",
    r"(encoder|decoder)\.mid\.attn_1\.proj_out\.(\w+)": r"\1.mid_block.attentions.0.to_out.0.\2",
    r"(encoder|decoder)\.mid\.block_1\.(.+)": r"\1.mid_block.resnets.0.\2",
    r"(encoder|decoder)\.mid\.block_2\.(.+)": r"\1.mid_block.resnets.1.\2",
    r"encoder\.down\.(\d+)\.block\.(\d+)\.(.+)": r"encoder.down_blocks.\1.resnets.\2.\3",
    r"encoder\.down\.(\d+)\.downsample\.(.+)": r"encoder.down_blocks.\1.downsamplers.0.\2",
    r"decoder\.up\.(\d+)\.block\.(\d+)\.(.+)": r"decoder.up_blocks.\1.resnets.\2.\3",
    r"decoder\.up\.(\d+)\.upsample\.(.+)": r"decoder.up_blocks.\1.upsamplers.0.\2",
}


def diffusers_names(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors with diffusers' names; names that are not original ones are kept.

    `decoder.up.0` is the block of the highest resolution, the last one: diffusers counts its
    `up_blocks` from the lowest resolution, the first one.
    """
    last = max((int(match[1]) for name in tensors if (match := _UP.fullmatch(name))), default=0)
    return {_renamed(name, last): tensor for name, tensor in tensors.items()}


def has_original_names(tensors: Mapping[str, np.ndarray]) -> bool:
    """Whether any tensor has a name that only the original code gives."""
    return any(_ORIGINAL.fullmatch(name) for name in tensors)


def _renamed(name: str, last: int) -> str:
    for pattern, replacement in _RULES.items():
        if match := re.fullmatch(pattern, name):
            new = match.expand(replacement).replace(".nin_shortcut.", ".conv_shortcut.")
            if up := re.fullmatch(r"decoder\.up_blocks\.(\d+)\.(.+)", new):
                return f"decoder.up_blocks.{last - int(up[1])}.{up[2]}"
            return new
    return name
