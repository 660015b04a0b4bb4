"""Fashion-MNIST on a CPU: class-conditional garments, grey images of 28x28 in ten classes.

    apt-get install dataset-fashion-mnist    # or --config.data.path=FOLDER of the four IDX files
    python main.py --config=configs/fashion_mnist.py
    python main.py --config=configs/fashion_mnist.py:unet

A run takes under an hour on one core. Most garments are known by their outlines; textures are
noisy. docs/fashion_mnist.md has the metrics, samples and what was tried. More steps and larger
networks need a GPU: `configs/mnist.py:fashion`.

`:unet` differs in the generator alone, a U-Net whose step takes as many operations: 31.2 GFLOP
instead of 30.8, of products. Its Fréchet distance on pixels is lower, 23.3 instead of 27.1 (real
images: 0.97), and with `--config.features.raw_weight=8` lower still, 20.2 (one seed each).
"""

from drifting_jax.config import base_config, check_variant


def get_config(variant: str = "dit"):
    """Returns the config; `drifting_jax.config.fields` lists every field."""
    check_variant(__file__, variant, ("dit", "unet"))
    config = base_config("generator")
    config.data.source = "fashion_mnist"
    config.data.path = "/usr/share/datasets/fashion-mnist"  # of Debian's package
    config.log_every = 20

    config.encoder.width = 16
    config.encoder.blocks = (1, 1, 1)
    config.encoder.groups = 4
    config.encoder.input_patch_size = 2  # a grid of 14x14
    config.encoder.every_k_block = 2
    config.encoder.train.num_steps = 800
    config.encoder.train.classifier_steps = 200
    config.encoder.train.learning_rate = 4e-3
    config.encoder.train.schedule = "cosine"

    config.model.kind = variant
    if variant == "dit":
        config.model.patch_size = 4
        config.model.width = 64
        config.model.depth = 4
        config.model.num_context_tokens = 2
    else:
        config.model.patch_size = 2  # a grid of 14x14
        config.model.width = 24
        config.model.num_heads = 1
        config.model.unet.multipliers = (1, 1)
        config.model.unet.blocks_per_level = 1
        config.model.unet.attention_sides = (7,)
        config.model.unet.groups = 8
        config.model.unet.condition_width = 64

    config.drift.combine = "separate"
    config.guidance.maximum = 2.0
    config.guidance.probability_of_one = 0.5
    config.queue.per_class = 256
    config.queue.push_per_step = 256
    config.optim.learning_rate = 2e-3
    config.optim.schedule = "cosine"
    config.optim.warmup_steps = 100
    config.train.num_steps = 1000
    config.train.generated_per_label = 32
    config.train.positives_per_label = 32
    config.train.unconditional_per_label = 8
    config.train.ema_decays = (0.99, 0.998)
    config.train.save_every = 250
    config.train.sample_every = 250
    config.eval.ema_decay = 0.99
    config.eval.samples_per_class = 1000
    return config
