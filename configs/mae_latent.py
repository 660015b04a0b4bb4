"""The masked autoencoder of ImageNet 256x256 that gives the features of latents (A.3).

    python main.py --config=configs/mae_latent.py:640 --dry_run --topology=v5e:8x8

Variants are base widths: `:640` (2.69B parameters, the default) and `:256` (431M). AdamW at 4e-3,
batches of 8,192, averages of decay 0.9995, and a linear classifier in the last 3,000 steps. With
its optimizer and average the wide one takes 43 GB, so it is split over all devices.
"""

from drifting_jax.config import FSDP_RULES, PAPER_ENCODER, base_config, check_variant

WIDTHS = ("640", "256")


def get_config(variant: str = "640"):
    """The config of a width; every field and its default is in drifting_jax/defaults.py."""
    check_variant(__file__, variant, WIDTHS)
    config = base_config("encoder")
    config.log_every = 100
    config.data.source = "imagenet"
    config.data.flip = True
    config.data.num_workers = 16
    config.data.latent = True

    config.encoder.update(PAPER_ENCODER)
    config.encoder.width = int(variant)

    config.mesh.data = 1
    config.mesh.fsdp = -1
    config.mesh.rules = FSDP_RULES
    return config
