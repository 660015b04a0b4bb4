"""CIFAR-10 and CIFAR-100: colour images of 32x32, with classes or without.

    python main.py --config=configs/cifar10.py --config.data.path=FOLDER
    python main.py --config=configs/cifar10.py:100 --config.data.path=FOLDER
    python main.py --config=configs/cifar10.py:unconditional --config.data.path=FOLDER \
      --config.extra_encoder.path=hf://facebook/dinov2-base

FOLDER holds `cifar-10-python.tar.gz`, `cifar-10-binary.tar.gz` or the folder that one of them
unpacks to (`cifar-100-…` for the other), or is torchvision's folder, or was prepared by
tensorflow-datasets in array_record. Nothing here needs TensorFlow.

`:10` (the default) and `:100` are class-conditional: a transformer and an autoencoder that the run
trains itself. Made for one GPU. The settings are not tuned: they have run for a few steps.

The other variants have a U-Net, the features of a published DINOv2, whose weights
`extra_encoder.path` names, and the whole data set on the device (150 MB). None of them has been
trained here: memory and time are those of programs compiled for these GPUs (docs/gpu.md), which is
an estimate. Their FID is that of

    python -m drifting_jax.evaluate --workdir=RUN --protocol=train_split

* `:unconditional` follows a public run without classes (xyfJASON): one group of 640 generated and
  640 real images, 100,000 steps of 172 TFLOP. Its author reports an FID of 6.74, without saying of
  how many samples. 10.2 GiB; 26 hours on an H100. With
  `--config.train.microbatches=1 --config.encoder.remat=auto` it takes 17.1 GiB and 20 hours.
* `:conditional` gives each of the ten classes a row of 64 generated and 64 real images, with
  guidance; 178 TFLOP a step. No published result is known. 4.2 GiB; 97 hours on an RTX 4090.
* `:small` is `:unconditional` with a quarter of the U-Net, DINOv2 ViT-S
  (hf://facebook/dinov2-small) and groups of 256, 50,000 steps of 18 TFLOP. For a card of 12 GB; an
  estimated 8 hours on an RTX 4090 (1.8 GiB). Nothing tells what FID it reaches.
"""

from drifting_jax.config import base_config, check_variant

VARIANTS = ("10", "100", "unconditional", "conditional", "small")


def get_config(variant: str = "10"):
    """Returns the config; `drifting_jax.config.fields` lists every field."""
    check_variant(__file__, variant, VARIANTS)
    config = base_config("generator")
    config.data.source = "cifar100" if variant == "100" else "cifar10"
    config.log_every = 100
    if variant in ("10", "100"):
        return _with_classes(config)
    config = _with_dinov2(config)
    if variant == "conditional":
        return _conditional(config)
    return _small(config) if variant == "small" else config


def _with_classes(config):
    config.data.num_workers = 2
    config.data.flip = True

    config.encoder.width = 128
    config.encoder.blocks = (2, 3, 3)
    config.encoder.groups = 32
    config.encoder.input_patch_size = 2  # a grid of 16x16
    config.encoder.mask_patch_size = 2
    config.encoder.every_k_block = 2
    config.encoder.train.num_steps = 40000
    config.encoder.train.batch_size = 1024
    config.encoder.train.crop = "random_resized"
    config.encoder.train.learning_rate = 2e-3
    config.encoder.train.warmup_steps = 1000
    config.encoder.train.schedule = "cosine"
    config.encoder.train.ema_decay = 0.9995
    config.encoder.train.classifier_steps = 3000
    config.encoder.train.save_every = 5000

    config.model.patch_size = 4
    config.model.width = 512
    config.model.depth = 8
    config.model.num_heads = 8
    config.model.num_context_tokens = 8
    config.model.num_style_books = 32
    config.model.styles_per_book = 64
    config.model.dtype = "bfloat16"

    config.guidance.probability_of_one = 0.5
    config.queue.per_class = 128
    config.queue.unconditional = 1000
    config.queue.push_per_step = 256
    config.optim.learning_rate = 4e-4
    config.optim.warmup_steps = 2000
    config.train.num_steps = 50000
    config.train.labels_per_step = 10
    config.train.generated_per_label = 64
    config.train.positives_per_label = 64
    config.train.unconditional_per_label = 16
    config.train.ema_decays = (0.999, 0.9998)
    config.train.save_every = 5000
    config.train.sample_every = 2500
    config.eval.samples_per_class = 1000
    return config


def _with_dinov2(config):
    """One group without classes, a U-Net, and the features of DINOv2."""
    config.data.labels = False
    config.queue.kind = "dataset"

    config.encoder.kind = "none"
    config.encoder.dtype = "bfloat16"  # of the encoders of pixels, too
    config.encoder.remat = "block"
    config.extra_encoder.kind = "dinov2_b"
    config.features.joint_scale = True
    config.features.total = "mean"  # of DINOv2's feature, the pixels and their channels' RMS

    config.model.kind = "unet"
    config.model.patch_size = 1
    config.model.width = 128
    config.model.num_heads = 1
    config.model.styles_per_book = 0
    config.model.dtype = "bfloat16"
    config.model.unet.condition_width = 0

    config.drift.affinity_floor = 0.0
    config.guidance.maximum = 1.0
    config.optim.learning_rate = 5e-5
    config.optim.schedule = "cosine"
    config.optim.end_learning_rate = 1e-5
    config.optim.warmup_steps = 5000
    config.train.num_steps = 100000
    config.train.labels_per_step = 1
    config.train.generated_per_label = 640
    config.train.positives_per_label = 640
    config.train.unconditional_per_label = 0
    config.train.microbatches = 10  # of 64 generated images
    config.train.ema_decays = (0.999,)
    config.train.save_every = 5000
    config.train.sample_every = 2500
    config.eval.cfg_scales = (1.0,)
    config.eval.samples_per_class = 10000
    return config


def _conditional(config):
    config.data.labels = True
    config.model.num_style_books = 32
    config.model.styles_per_book = 64
    config.model.unet.condition_width = 512
    config.guidance.maximum = 2.0
    config.guidance.probability_of_one = 0.5
    config.train.labels_per_step = 10
    config.train.generated_per_label = 64
    config.train.positives_per_label = 64
    config.train.unconditional_per_label = 16
    config.eval.cfg_scales = (1.0, 1.25, 1.5)
    config.eval.samples_per_class = 1000
    return config


def _small(config):
    config.extra_encoder.kind = "dinov2_s"
    config.model.width = 64
    config.train.num_steps = 50000
    config.train.generated_per_label = 256
    config.train.positives_per_label = 256
    config.train.microbatches = 8  # of 32 generated images
    config.optim.learning_rate = 1e-4
    return config
