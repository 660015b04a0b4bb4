"""MNIST and Fashion-MNIST: class-conditional grey images of 28x28, in ten classes.

    python main.py --config=configs/mnist.py --config.data.path=FOLDER
    python main.py --config=configs/mnist.py:fashion --config.data.path=FOLDER

FOLDER holds the four IDX files, gzipped or not (`train-images-idx3-ubyte.gz`, …), or is
torchvision's folder, or was prepared by tensorflow-datasets in array_record. Debian's package
dataset-fashion-mnist is /usr/share/datasets/fashion-mnist. Nothing here needs TensorFlow.
Made for one GPU. The settings are not tuned: they have run for a few steps.
"""

from drifting_jax.config import base_config, check_variant

VARIANTS = {"mnist": "mnist", "fashion": "fashion_mnist"}


def get_config(variant: str = "mnist"):
    """Returns the config; `drifting_jax.config.fields` lists every field."""
    check_variant(__file__, variant, tuple(VARIANTS))
    config = base_config("generator")
    config.data.source = VARIANTS[variant]
    config.data.num_workers = 2

    config.encoder.width = 64
    config.encoder.blocks = (2, 2, 2)
    config.encoder.groups = 16
    config.encoder.input_patch_size = 2  # a grid of 14x14
    config.encoder.mask_patch_size = 2
    config.encoder.every_k_block = 2
    config.encoder.train.num_steps = 6000
    config.encoder.train.batch_size = 512
    config.encoder.train.learning_rate = 4e-3
    config.encoder.train.warmup_steps = 200
    config.encoder.train.schedule = "cosine"
    config.encoder.train.ema_decay = 0.999
    config.encoder.train.classifier_steps = 1000

    config.model.patch_size = 4
    config.model.width = 384
    config.model.depth = 6
    config.model.num_heads = 6
    config.model.num_context_tokens = 4
    config.model.num_style_books = 16
    config.model.styles_per_book = 32
    config.model.dtype = "bfloat16"

    config.guidance.probability_of_one = 0.5
    config.queue.per_class = 128
    config.queue.unconditional = 1000
    config.queue.push_per_step = 128
    config.optim.learning_rate = 4e-4
    config.optim.warmup_steps = 1000
    config.train.num_steps = 20000
    config.train.labels_per_step = 10
    config.train.generated_per_label = 64
    config.train.positives_per_label = 64
    config.train.unconditional_per_label = 16
    config.train.ema_decays = (0.999, 0.9995)
    config.train.save_every = 2000
    config.train.sample_every = 1000
    config.eval.samples_per_class = 1000
    config.log_every = 100
    return config
