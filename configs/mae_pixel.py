"""The masked autoencoder of ImageNet 256x256 that gives the features of pixels (A.3).

    python main.py --config=configs/mae_pixel.py:640 --dry_run --topology=v5e:8x8
    python main.py --config=configs/mae_pixel.py:640 --config.data.path=IMAGES

The variants and the training are those of configs/mae_latent.py; the input is pixels in patches of
8x8.
"""

from drifting_jax.config import check_variant, file_beside


def get_config(variant: str = "640"):
    """Returns the config of a width; `drifting_jax.config.fields` lists every field."""
    latent = file_beside(__file__, "mae_latent.py")
    check_variant(__file__, variant, latent.WIDTHS)
    config = latent.get_config(variant)
    config.data.latent = False
    config.encoder.input_patch_size = 8
    return config
