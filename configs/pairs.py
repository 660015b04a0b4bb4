"""Images of conditions that are arrays: super-resolution, next frames, images of embeddings.

    python main.py --config=configs/pairs.py:small --config.data.path=digit_pairs.npz \\
      --config.data.held_out=297
    python main.py --config=configs/pairs.py --config.data.path=pairs.npz

The file holds the arrays condition [n, ...] and image [n, h, w, c]; docs/conditions.md makes that
of the digits. The variant small is for images of 8x8 on a CPU, where it takes two to four minutes
on two cores. Expect an energy score of 0.18 on the digits that are held out. The other variant is
for images of 32x32 to 64x64 on one GPU; its settings are not tuned, and only its step was traced.
"""

from drifting_jax.config import base_config, check_variant


def get_config(variant: str = "large"):
    """Returns the config; `drifting_jax.config.fields` lists every field."""
    check_variant(__file__, variant, ("large", "small"))
    config = base_config("pairs")
    if variant == "small":
        config.log_every = 20
        config.model.width = 64
        config.model.depth = 2
        config.condition.width = 64
        config.optim.learning_rate = 2e-3
        config.optim.schedule = "cosine"
        config.optim.warmup_steps = 30
        config.train.num_steps = 600
        config.train.ema_decays = (0.98, 0.99)
        config.train.save_every = 200
        config.train.sample_every = 200
        config.eval.ema_decay = 0.98
        return config
    config.model.patch_size = 4
    config.model.width = 384
    config.model.depth = 8
    config.model.num_heads = 6
    config.model.num_context_tokens = 8
    config.model.dtype = "bfloat16"
    config.condition.width = 384
    config.optim.warmup_steps = 1000
    config.train.num_steps = 50000
    config.train.conditions = 64
    config.train.generated = 16
    config.train.ema_decays = (0.999, 0.9995)
    config.train.save_every = 2000
    config.train.sample_every = 2000
    return config
