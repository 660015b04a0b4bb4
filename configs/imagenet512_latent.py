"""ImageNet 512x512, class-conditional, in 64x64 latents.

    python -m drifting_jax.prepare latents --source=IMAGES --out=LATENTS --size=512 --vae=hf://…
    python main.py --config=configs/imagenet512_latent.py:L --dry_run --topology=v5e:8x8
    python main.py --config=configs/imagenet512_latent.py:L --config.data.path=LATENTS

Variants: `:L` (463M parameters, the default) and `:B` (133M), with the settings of
configs/imagenet_latent.py. Patches of twice the side leave the generator 256 tokens and the encoder
a grid of 32x32, as at 256x256, so a step does about the same work.
Hardware: TPU slices such as v5e-64. Compiled for v5e:8x8, the generator of `:L` takes 10.5 GiB of a
chip and the run an estimated 249 hours, `:B` 8.0 GiB and 167 hours; nothing was measured.
Expect: no metric is known, since the paper trains at 256x256 alone. It has run here scaled down to
a few steps alone.
"""

from drifting_jax.config import check_variant, file_beside


def get_config(variant: str = "L"):
    """Returns the config of a variant; `drifting_jax.config.fields` lists every field."""
    check_variant(__file__, variant, ("B", "L"))
    config = file_beside(__file__, "imagenet_latent.py").get_config(variant)
    config.data.image_size = 512
    config.encoder.input_patch_size = 2  # the grid of 32x32 that the encoder has at 256x256
    config.model.patch_size = 4  # 256 tokens
    return config
