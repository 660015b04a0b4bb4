"""The fields of each task, and values that several config files share.

To add a field, write one `Field` into `shared_fields.py` or the file of its task, such as
`toy_fields.py`: its default, meaning, choices and bounds stand there together, and checks, resuming
and the reference page are derived from them. Rules between two fields are in `checks.py`. A field
that is removed goes into `REMOVED`.
"""

from drifting_jax.config.field import Section
from drifting_jax.config.generator_fields import ENCODER, GENERATOR
from drifting_jax.config.pairs_fields import PAIRS
from drifting_jax.config.policy_fields import POLICY
from drifting_jax.config.toy_fields import TOY

SECTIONS: dict[str, tuple[Section, ...]] = {
    "generator": GENERATOR,
    "encoder": ENCODER,
    "toy": TOY,
    "policy": POLICY,
    "pairs": PAIRS,
}

# Fields that stored configs may have and no task has any more: {"section.field": why}.
REMOVED: dict[str, str] = {}

# For mesh.rules: splits the output channels of every large array of our networks over `fsdp`.
FSDP_RULES = (
    ("blocks/.*kernel", (None, None, "fsdp")),  # stacked, model.scan
    ("classifier/kernel", ("fsdp",)),  # a thousand classes seldom divide
    ("(conv|head|stem|downsample)/kernel", (None, None, None, "fsdp")),
    ("kernel", (None, "fsdp")),
    ("style_books", (None, None, "fsdp")),
    ("embedding", (None, "fsdp")),
)

# For config.encoder.update: the paper's masked autoencoder (A.3), without its width and patches.
PAPER_ENCODER = {
    "blocks": (3, 4, 6, 3),
    "groups": 32,
    "every_k_block": 2,
    "dtype": "bfloat16",
    "remat": "block",
    "train": {
        "num_steps": 33000,
        "classifier_steps": 3000,
        "classifier_weight": 0.1,
        "batch_size": 8192,
        "crop": "random_resized",
        "microbatches": 8,
        "learning_rate": 4e-3,
        "warmup_steps": 1000,
        "ema_decay": 0.9995,
        "save_every": 1000,
    },
}
