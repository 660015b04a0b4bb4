"""The masked autoencoder of ImageNet 256x256 that gives the features of pixels (A.3).

    python main.py --config=configs/mae_pixel.py:640 --dry_run --topology=v5e:8x8

As configs/mae_latent.py, variants and all, on pixels patchified 8x8.
"""

import importlib.util
from pathlib import Path

from drifting_jax.errors import UserError


def get_config(variant: str = "640"):
    """The config of a width; every field and its default is in drifting_jax/defaults.py."""
    # Configs are no package, so the file beside this one is not simply imported.
    path = Path(__file__).with_name("mae_latent.py")
    spec = importlib.util.spec_from_file_location("mae_latent", path)
    latent = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(latent)
    if variant not in latent.WIDTHS:
        raise UserError(
            f"configs/mae_pixel.py has no variant {variant!r}; it knows {', '.join(latent.WIDTHS)}"
        )
    config = latent.get_config(variant)
    config.data.latent = False
    config.encoder.input_patch_size = 8
    return config
