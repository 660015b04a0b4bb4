"""The config of a generator that trains in seconds on one device."""

from drifting_jax.config import base_config


def get_config():
    """Returns a config of digits with few steps of everything."""
    config = base_config("generator")
    config.log_every = 5
    config.mesh.data = 1
    config.encoder.width = 4
    config.encoder.groups = 2
    config.encoder.blocks = (1,)
    config.encoder.every_k_block = 2
    config.encoder.train.num_steps = 48
    config.encoder.train.classifier_steps = 10
    config.encoder.train.batch_size = 16
    config.encoder.train.warmup_steps = 2
    config.encoder.train.save_every = 8
    config.features.patch_sizes = ()
    config.model.patch_size = 4
    config.model.width = 16
    config.model.depth = 1
    config.model.num_heads = 2
    config.model.num_context_tokens = 1
    config.model.num_style_books = 2
    config.drift.temperatures = (0.05, 0.2)
    config.queue.per_class = 8
    config.queue.unconditional = 32
    config.queue.push_per_step = 16
    config.optim.warmup_steps = 5
    config.train.num_steps = 100
    config.train.labels_per_step = 4
    config.train.generated_per_label = 4
    config.train.positives_per_label = 4
    config.train.unconditional_per_label = 2
    config.train.ema_decays = (0.9, 0.99)
    config.train.save_every = 10
    config.train.sample_every = 60
    config.eval.cfg_scales = (1.0,)
    config.eval.samples_per_class = 8
    config.eval.ema_decay = 0.9
    config.eval.k = 3
    config.eval.every = 60
    return config
