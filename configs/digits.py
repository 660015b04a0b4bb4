"""Digits: class-conditional handwritten digits of 8x8, which come with scikit-learn.

    python main.py --config=configs/digits.py
    python main.py --config=configs/digits.py:quick
    python main.py --config=configs/digits.py:diverse

The default takes eight minutes on two CPU cores, more on slow shared ones: half a minute for the
encoder, the rest for the generator. Expect a Fréchet distance on pixels of about 0.8 at α = 1,
where real images have 0.35, and an accuracy of about 0.99. docs/reading_a_run.md explains the
metrics.

`:quick` takes half the time, for a Fréchet distance of 0.75 and a recall of 0.81. It has the
settings of `:diverse` with more weight on the pixels, an encoder on patches of 2x2, and a higher
learning rate for fewer steps.

`:diverse` takes as long as the default, and its samples are nearer to real digits and cover more of
them: a Fréchet distance of 0.64 in place of 0.80 and a recall of 0.83 in place of 0.70
(docs/recipes.md). Samples repel each other a little more than real ones attract them, pixels count
eight times in the loss, and the temperatures are 0.05 and 0.1.

Three settings of the default were chosen by trial on this data:

* The encoder sees single pixels, on a grid of 8x8. With patches of 2x2 a step takes half the
  time, but with all else equal recall stays about 0.05 lower.
* Each side of the field is divided by its own sum (`combine = "separate"`). This reaches the same
  Fréchet distance in about two thirds of the steps that Algorithm 2's crossed sums need.
* Half of the class rows train at α = 1, the others at up to 2. This is less guidance than on
  ImageNet, because the classes hardly overlap.
"""

from drifting_jax.config import base_config, check_variant


def get_config(variant: str = "plain"):
    """Returns the config; `drifting_jax.config.fields` lists every field."""
    check_variant(__file__, variant, ("plain", "quick", "diverse"))
    config = base_config("generator")
    config.log_every = 20

    config.encoder.width = 16
    config.encoder.blocks = (1, 1, 1)  # maps of 8x8, 4x4, 2x2; 4x4, 2x2, 1x1 with `:quick`
    config.encoder.groups = 4
    config.encoder.every_k_block = 2
    config.encoder.train.num_steps = 400
    config.encoder.train.classifier_steps = 100
    config.encoder.train.learning_rate = 4e-3
    config.encoder.train.schedule = "cosine"

    config.model.patch_size = 4
    config.model.width = 96
    config.model.depth = 4
    config.model.num_context_tokens = 2

    config.drift.combine = "separate"
    config.guidance.maximum = 2.0
    config.guidance.probability_of_one = 0.5
    config.queue.per_class = 128
    config.optim.learning_rate = 2e-3
    config.optim.schedule = "cosine"
    config.optim.warmup_steps = 100
    config.train.num_steps = 1000
    config.train.generated_per_label = 32
    config.train.positives_per_label = 64
    config.train.unconditional_per_label = 8
    config.train.ema_decays = (0.99, 0.998)
    config.train.save_every = 200
    config.train.sample_every = 100
    config.eval.ema_decay = 0.99
    config.eval.samples_per_class = 144
    if variant != "plain":
        config.drift.repulsion = 1.05
        config.drift.temperatures = (0.05, 0.1)
    if variant == "diverse":
        config.features.raw_weight = 8.0
        config.train.num_steps = 1100  # in the time of 1000 with three temperatures
    if variant == "quick":
        config.encoder.input_patch_size = 2
        config.features.raw_weight = 16.0
        config.optim.learning_rate = 4e-3
        config.train.num_steps = 900
    return config
