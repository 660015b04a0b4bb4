"""ImageNet 256x256, class-conditional, in the latents of the Stable Diffusion VAE (Table 8).

    python main.py --config=configs/imagenet_latent.py:L --dry_run --topology=v5e:8x8
    python main.py --config=configs/imagenet_latent.py:L --config.data.path=LATENTS

Variants: `:L` (463M parameters, the default), `:B` (133M), `:ablation` (B with a narrow encoder and
30k steps, the setting of the paper's ablations) and `:one_gpu` (34M, with the narrow encoder and a
quarter of the ablation's class rows, for 80k steps). Made for TPU slices such as v5e-64, `:one_gpu`
for a single GPU; the first command prints estimates of the memory and time that a run needs.
`--config.encoder.path=runs/mae_latent_640` uses an encoder that configs/mae_latent.py trained;
without it the run trains its own first.

Expect: the paper reports an FID of 1.54 for L, 1.75 for B and 8.46 for the ablation, with one
network evaluation; nothing was measured here. No metric is known for `:one_gpu`, which has run here
scaled down to a few steps alone; compiled for an RTX 4090, its encoder takes 14.1 GiB and an
estimated 173 hours, and its generator 11.4 GiB and 118 hours.
"""

from drifting_jax.config import FSDP_RULES, PAPER_ENCODER, base_config, check_variant

SIZES = {
    "B": {"width": 768, "depth": 12, "num_heads": 12},
    "L": {"width": 1024, "depth": 24, "num_heads": 16},
}
SIZES["ablation"] = SIZES["B"]
SIZES["one_gpu"] = {"width": 384, "depth": 12, "num_heads": 6}


def get_config(variant: str = "L"):
    """Returns the config of a variant; `drifting_jax.config.fields` lists every field."""
    check_variant(__file__, variant, SIZES)
    config = base_config("generator")
    set_common(config)
    config.model.update(SIZES[variant])
    if variant == "one_gpu":
        set_one_gpu(config)
        return config
    config.data.latent = True
    config.encoder.width = 640
    config.model.patch_size = 2
    config.model.attention_dtype = "bfloat16"
    config.optim.learning_rate = 4e-4
    config.optim.warmup_steps = 10000
    config.train.num_steps = 200000
    config.train.labels_per_step = 128
    config.train.unconditional_per_label = 32
    if variant == "L":
        config.guidance.probability_of_one = 0.5
    if variant == "B":
        config.optim.weight_decay = 0.0
        config.guidance.power = 5.0
        config.queue.push_per_step = 128
    if variant == "ablation":
        config.encoder.width = 256
        config.model.attention_dtype = "float32"
        config.optim.learning_rate = 2e-4
        config.optim.warmup_steps = 5000
        config.train.num_steps = 30000
        config.train.labels_per_step = 64
        config.train.unconditional_per_label = 16
    return config


def set_one_gpu(config):
    """Sets what the generators of latents share that are made for a single GPU."""
    config.data.latent = True
    config.data.num_workers = 8
    config.encoder.width = 256
    config.model.update(SIZES["one_gpu"])
    config.model.remat = "auto"
    config.encoder.train.microbatches = 32
    config.optim.learning_rate = 2e-4
    config.optim.warmup_steps = 5000
    config.train.num_steps = 80000
    config.train.labels_per_step = 16
    config.train.unconditional_per_label = 16
    config.train.ema_decays = (0.999, 0.9998)
    config.mesh.data = -1
    config.mesh.fsdp = 1
    config.mesh.rules = ()


def set_common(config):
    """Sets what all ImageNet generators of the paper share."""
    config.log_every = 100
    config.data.source = "imagenet"
    config.data.num_workers = 16
    config.data.flip = True

    config.encoder.update(PAPER_ENCODER)

    config.model.num_context_tokens = 16
    config.model.num_style_books = 32
    config.model.styles_per_book = 64
    config.model.dtype = "bfloat16"
    config.model.remat = "block"
    config.model.scan = True

    config.queue.per_class = 128
    config.queue.unconditional = 1000
    config.train.generated_per_label = 64
    config.train.microbatches = 0  # as many as the devices need; the numbers do not depend on it
    config.train.positives_per_label = 64
    config.train.ema_decays = (0.999, 0.9995, 0.9998, 0.9999)
    config.train.save_every = 5000
    config.train.sample_every = 5000
    config.eval.ema_decay = 0.999

    # Parameters, their averages and the frozen encoder are split over all devices.
    config.mesh.data = 1
    config.mesh.fsdp = -1
    config.mesh.rules = FSDP_RULES
