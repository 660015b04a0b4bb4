"""CIFAR-10: class-conditional colour images of 32x32, in ten classes.

    pip install tensorflow && tfds build cifar10 --file_format=array_record   # once
    python main.py --config=configs/cifar10.py

Made for one GPU. The settings are not tuned: they have run for a few steps on mock data of the same
format. Only the preparation of the data set needs TensorFlow. `--config.data.path=DIR` reads a
data set that was prepared with `--data_dir=DIR`.
"""

from drifting_jax.config import base_config


def get_config():
    """Returns the config; `drifting_jax.config.fields` lists every field."""
    config = base_config("generator")
    config.data.source = "cifar10"
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
