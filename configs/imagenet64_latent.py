"""ImageNet 64x64, class-conditional, in 8x8 latents: the smallest ImageNet, for one GPU.

    python -m drifting_jax.prepare latents --source=IMAGES --out=LATENTS --size=64 --vae=hf://…
    python main.py --config=configs/imagenet64_latent.py --dry_run --topology=rtx4090
    python main.py --config=configs/imagenet64_latent.py --config.data.path=LATENTS

Hardware: one GPU of 24 GB. The generator has 26M parameters and the encoder, which the run trains
first, 431M. Compiled for an RTX 4090, the encoder's step takes 13.7 GiB and the generator's 11.1,
and the whole run an estimated 21 hours, at most 10 kWh. On one v5e chip it needs
`--config.encoder.train.microbatches=8`: 12.2 GiB and 28 hours. No step has run on a GPU or TPU.
Expect: others report an FID of 24 to 29 at α = 2 after these 80k steps, with 16 class rows of 64
samples, this width and depth, and an encoder of width 256; but for the energy field and W-Flow, not
for the paper's field, which this config trains. The patch size and the other settings are ours or
those of the paper's ablation. It has run here scaled down to a few steps alone.
"""

from drifting_jax.config import base_config, file_beside


def get_config():
    """Returns the config; `drifting_jax.config.fields` lists every field."""
    shared = file_beside(__file__, "imagenet_latent.py")
    config = base_config("generator")
    shared.set_common(config)
    shared.set_one_gpu(config)
    config.data.image_size = 64
    config.encoder.train.microbatches = 2  # an image has a sixteenth of the locations of 256x256
    config.model.depth = 9
    config.model.patch_size = 1  # 64 tokens
    return config
