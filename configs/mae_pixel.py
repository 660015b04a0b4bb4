"""The masked autoencoder of ImageNet 256x256 that gives the features of pixels (A.3).

    python main.py --config=configs/mae_pixel.py:640 --dry_run --topology=v5e:8x8

As configs/mae_latent.py, variants and all, on pixels patchified 8x8.
"""

from drifting_jax.config import check_variant, file_beside


def get_config(variant: str = "640"):
    """The config of a width; every field and its default is in drifting_jax/defaults.py."""
    latent = file_beside(__file__, "mae_latent.py")
    check_variant(__file__, variant, latent.WIDTHS)
    config = latent.get_config(variant)
    config.data.latent = False
    config.encoder.input_patch_size = 8
    return config
