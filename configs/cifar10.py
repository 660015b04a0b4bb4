"""CIFAR-10 and CIFAR-100: class-conditional colour images of 32x32, in ten or a hundred classes.

    python main.py --config=configs/cifar10.py --config.data.path=FOLDER
    python main.py --config=configs/cifar10.py:100 --config.data.path=FOLDER

FOLDER holds `cifar-10-python.tar.gz`, `cifar-10-binary.tar.gz` or the folder that one of them
unpacks to (`cifar-100-…` for the other), or is torchvision's folder, or was prepared by
tensorflow-datasets in array_record. Nothing here needs TensorFlow.
Made for one GPU. The settings are not tuned: they have run for a few steps.
"""

from drifting_jax.config import base_config, check_variant

VARIANTS = {"10": "cifar10", "100": "cifar100"}


def get_config(variant: str = "10"):
    """Returns the config; `drifting_jax.config.fields` lists every field."""
    check_variant(__file__, variant, tuple(VARIANTS))
    config = base_config("generator")
    config.data.source = VARIANTS[variant]
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
    config.log_every = 100
    return config
