"""Your own images: a folder with a subfolder of image files for each class.

    python main.py --config=configs/images.py --config.data.path=FOLDER
    python main.py --config=configs/images.py:128 --config.data.path=FOLDER
    python main.py --config=configs/images.py:small --config.data.path=FOLDER

Variants: `:64` crops the images to 64x64 and is made for one GPU (the default), `:128` to 128x128,
for one GPU too; `:small` crops them to 16x16, to try the whole way in a quarter of an hour on one
CPU core. On an RTX 4090 the steps of the generator of `:64` take 8 GiB and an estimated 3.6 hours;
add `--dry_run --topology=rtx4090` for the whole run, on this card or another. `:small` was tuned on
grey garments (docs/data.md), the others on no data set, so no metric of them is known.

`:small_dit` is what `:small` was before its generator became a U-Net. A run that began as such goes
on with it and with its own --workdir.

FOLDER holds the class folders, or `train/` with them. A class needs at least
`train.positives_per_label` images, or `--config.queue.allow_repeats=True`.
"""

from drifting_jax.config import base_config, check_variant

VARIANTS = ("64", "128", "small", "small_dit")


def get_config(variant: str = "64"):
    """Returns the config of a size; `drifting_jax.config.fields` lists every field."""
    check_variant(__file__, variant, VARIANTS)
    config = base_config("generator")
    config.data.source = "images"
    config.data.num_workers = 2
    config.data.flip = True
    config.encoder.train.crop = "random_resized"
    config.encoder.train.schedule = "cosine"
    config.guidance.maximum = 2.0
    config.guidance.probability_of_one = 0.5
    config.train.labels_per_step = 8
    if variant == "small":
        return _small_unet(_small(config))
    if variant == "small_dit":
        return _small(config)
    config.data.image_size = int(variant)

    config.encoder.width = 128
    config.encoder.blocks = (2, 3, 3)
    config.encoder.groups = 32
    config.encoder.input_patch_size = 4  # a grid of 16x16
    config.encoder.every_k_block = 2
    config.encoder.train.num_steps = 20000
    config.encoder.train.batch_size = 512
    config.encoder.train.learning_rate = 2e-3
    config.encoder.train.warmup_steps = 1000
    config.encoder.train.ema_decay = 0.9995
    config.encoder.train.classifier_steps = 2000
    config.encoder.train.save_every = 2000

    config.model.patch_size = 8
    config.model.width = 512
    config.model.depth = 8
    config.model.num_heads = 8
    config.model.num_context_tokens = 8
    config.model.num_style_books = 32
    config.model.styles_per_book = 64
    config.model.dtype = "bfloat16"

    config.queue.per_class = 128
    config.queue.unconditional = 1000
    config.queue.push_per_step = 128
    config.optim.warmup_steps = 2000
    config.train.num_steps = 50000
    config.train.generated_per_label = 64
    config.train.positives_per_label = 64
    config.train.ema_decays = (0.999, 0.9998)
    config.train.save_every = 2500
    config.train.sample_every = 2500
    config.log_every = 100
    if variant == "128":
        config.encoder.input_patch_size = 8  # the same grid of 16x16
        config.train.microbatches = 0  # 256 tokens of an image in place of 64
    return config


def _small(config):
    config.log_every = 20
    config.data.image_size = 16
    config.encoder.width = 16
    config.encoder.groups = 4
    config.encoder.blocks = (1, 1, 1)
    config.encoder.input_patch_size = 2  # a grid of 8x8
    config.encoder.every_k_block = 2
    config.encoder.train.num_steps = 600
    config.encoder.train.classifier_steps = 150
    config.encoder.train.learning_rate = 4e-3
    config.model.patch_size = 4
    config.model.width = 96
    config.model.num_context_tokens = 2
    config.drift.combine = "separate"
    config.optim.learning_rate = 2e-3
    config.optim.schedule = "cosine"
    config.optim.warmup_steps = 100
    config.train.num_steps = 1000
    config.train.unconditional_per_label = 8
    config.train.ema_decays = (0.99, 0.998)
    config.train.save_every = 200
    config.eval.ema_decay = 0.99  # 0.998 keeps noise of the first steps in a run this short
    return config


def _small_unet(config):
    config.model.kind = "unet"
    config.model.patch_size = 1  # no seams of patches
    config.model.width = 24
    config.model.num_heads = 1
    config.model.unet.multipliers = (1, 1)
    config.model.unet.blocks_per_level = 1
    config.model.unet.attention_sides = (8,)
    config.model.unet.groups = 8
    config.model.unet.condition_width = 64
    # Chosen by trial on small garments: more variety (docs/data.md).
    config.drift.repulsion = 1.05
    config.features.raw_weight = 4.0
    # More samples, of fewer classes at a time: each has more others to move by.
    config.queue.per_class = 128
    config.train.labels_per_step = 5
    config.train.generated_per_label = 32
    config.train.positives_per_label = 64
    return config
