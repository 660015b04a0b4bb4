"""ImageNet 256x256, class-conditional, in pixels (Table 8).

    python main.py --config=configs/imagenet_pixel.py:L --dry_run --topology=v5e:8x8
    python main.py --config=configs/imagenet_pixel.py:L --config.data.path=IMAGES

Variants: `:L` (464M parameters, the default) and `:B` (134M). A frozen ConvNeXt-V2 Base gives
features besides the masked autoencoder. Made for TPU slices such as v5e-64; the first command
prints what a step needs. `--config.encoder.path=runs/mae_pixel_640` uses an encoder that
configs/mae_pixel.py trained; without it the run trains its own first. The paper reports an FID of
1.61 for L and 1.76 for B, with one network evaluation.
"""

from drifting_jax.config import base_config, check_variant, file_beside


def get_config(variant: str = "L"):
    """Returns the config of a variant; `drifting_jax.config.fields` lists every field."""
    check_variant(__file__, variant, ("B", "L"))
    shared = file_beside(__file__, "imagenet_latent.py")
    config = base_config("generator")
    shared.set_common(config)
    config.encoder.width = 640
    config.encoder.input_patch_size = 8
    config.extra_encoder.kind = "convnext"
    config.extra_encoder.path = "hf://facebook/convnextv2-base-22k-224"
    config.model.update(shared.SIZES[variant])
    config.model.patch_size = 16
    config.optim.learning_rate = 4e-4 if variant == "L" else 2e-4
    config.optim.warmup_steps = 10000
    config.guidance.power = 5.0
    config.queue.push_per_step = 128
    config.train.num_steps = 100000
    config.train.labels_per_step = 128
    config.train.positives_per_label = 128
    config.train.unconditional_per_label = 32
    return config
