"""The masked autoencoder of ImageNet 256x256 that gives the features of latents (A.3).

    python main.py --config=configs/mae_latent.py:640 --dry_run --topology=v5e:8x8
    python main.py --config=configs/mae_latent.py:640 --config.data.path=LATENTS

Variants are base widths: `:640` (2.69B parameters, the default) and `:256` (431M). Made for TPU
slices such as v5e-64. The wide network takes 43 GB with its optimizer and average, so everything is
split over all devices. Training: AdamW at 4e-3, batches of 8,192, an average of decay 0.9995, and a
linear classifier in the last 3,000 steps.
"""

from drifting_jax.config import FSDP_RULES, PAPER_ENCODER, base_config, check_variant

WIDTHS = ("640", "256")


def get_config(variant: str = "640"):
    """Returns the config of a width; `drifting_jax.config.fields` lists every field."""
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
