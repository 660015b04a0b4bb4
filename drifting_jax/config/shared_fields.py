"""The fields that every task has."""

from drifting_jax.config.field import Field, section
from drifting_jax.config.sharding_rules import check_sharding_rules

SCHEDULES = ("constant", "cosine")

RUN = section(
    "",
    "The run as a whole.",
    task=Field("generator", 'what is trained, such as "generator", "encoder" or "toy"'),
    seed=Field(0, "root of every random number of the run", minimum=0, maximum=2**32 - 1),
    log_every=Field(50, "steps between two lines of metrics", on_resume="may change"),
    tracker=Field(
        "none",
        'service that also gets the scalars and pictures: "wandb", "trackio" or "none"',
        on_resume="may change",
    ),
)

NUM_WORKERS = Field(
    0,
    "processes that read ahead, at most one for each core; 0 = the training process reads",
    minimum=0,
    on_resume="may change",
)

# Algorithm 2 with the settings of the paper and of the authors' release.
DRIFT = section(
    "drift",
    "The drifting field (Algorithm 2).",
    field=Field("mean_shift", 'which field; "mean_shift" is the paper\'s'),
    temperatures=Field(
        (0.02, 0.05, 0.2), "temperatures τ of the kernel, in units of the mean distance S"
    ),
    affinity_floor=Field(
        1e-6, "floor of the product of the two softmaxes, before the root; 0 = none", minimum=0
    ),
    normalize=Field(
        "both",
        'softmax over targets and over samples ("both"), over targets alone, or none (Table 11)',
        choices=("both", "targets", "none"),
    ),
    combine=Field(
        "crossed",
        'weigh each side by the other\'s sum ("crossed"), or divide each by its own ("separate")',
        choices=("crossed", "separate"),
    ),
    kernel=Field(
        "laplacian",
        "exp(−dist/τ) of (12), or Gaussian: exp(−dist²/2τ²)",
        choices=("laplacian", "gaussian"),
    ),
    attraction=Field(
        1.0, "factor on V⁺; with both factors at 1 the field is anti-symmetric (Table 1)", minimum=0
    ),
    repulsion=Field(1.0, "factor on V⁻; see attraction", minimum=0),
    negatives=Field(
        "default",
        "the generated samples that repel: the samples without each itself (own) or with it"
        " (kept), the other half of them (two_fold), a second batch (fresh), or the samples of the"
        " step before (stale)",
        choices=("default", "own", "kept", "two_fold", "fresh", "stale"),
    ),
    cost=Field(
        "squared",
        "of a transport plan: the distance or its square",
        choices=("distance", "squared"),
    ),
    iterations=Field(10, "Sinkhorn iterations of a transport plan"),
    neighbours=Field(
        0, "of the energy field: nearest targets of each side that act; 0 = all", minimum=0
    ),
    projections=Field(128, "random directions of the sliced field"),
    lookahead=Field(
        0, "further drifts from where a sample has been moved to, each normalised", minimum=0
    ),
    lookahead_stride=Field(1.0, "how far it is moved, in units of its drift's displacement"),
    annealed=Field(False, "temperatures fall from 1 to theirs over the first half of the run"),
    measure_reach=Field(
        False,
        "log how many positives pull a sample and which samples none reaches; takes up to a tenth"
        " of the loss's time more",
        on_resume="may change",
    ),
)

OPTIM = section(
    "optim",
    "The optimizer: gradient clipping, then AdamW, with a linear warm-up of its rate.",
    learning_rate=Field(4e-4, "AdamW: rate after the warm-up"),
    schedule=Field(
        "constant", "rate after the warm-up; cosine falls to about zero", choices=SCHEDULES
    ),
    end_learning_rate=Field(
        0.0, "last rate of a cosine; 0 = a millionth of learning_rate", minimum=0
    ),
    warmup_steps=Field(200, "steps over which the rate rises linearly", minimum=0),
    weight_decay=Field(0.01, "AdamW: decay of every parameter", minimum=0),
    b1=Field(0.9, "AdamW: decay of the mean of the gradients", minimum=0, below=1),
    b2=Field(0.95, "AdamW: decay of the mean of the squared gradients", minimum=0, below=1),
    clip_norm=Field(2.0, "largest global norm of the gradients; 0 = no clipping", minimum=0),
    first_moment_dtype=Field(
        "float32",
        "dtype in which AdamW stores the mean of the gradients; bfloat16 takes half the memory",
        choices=("float32", "bfloat16"),
    ),
    moments_on_host=Field(
        False,
        "keep both moments of AdamW in the host's memory between steps: 8 bytes a parameter less on"
        " the devices, more time",
        on_resume="may change",
    ),
)

# What the training of a generator and of a toy have in common.
STEPS = section(
    "train",
    "The training of the network.",
    num_steps=Field(3000, "steps of the run", on_resume="may grow"),
    ema_decays=Field(
        (0.99, 0.999),
        "decays; one average of the weights is kept for each",
        minimum=0,
        below=1,
    ),
    save_every=Field(500, "steps between two checkpoints", on_resume="may change"),
    keep=Field(2, "newest checkpoints that are kept", on_resume="may change"),
    keep_every=Field(
        0,
        "a checkpoint at each multiple of this step is kept for ever; 0 = none",
        minimum=0,
        on_resume="may change",
    ),
    max_skipped_in_a_row=Field(
        20, "the run stops after this many non-finite steps in a row", on_resume="may change"
    ),
)

PROFILE = section(
    "profile",
    "A trace of some steps, for TensorBoard's profiler and xprof.",
    start=Field(
        10, "the trace begins after this step of each stage", minimum=1, on_resume="may change"
    ),
    steps=Field(0, "steps in the trace; 0 = no trace", minimum=0, on_resume="may change"),
)

MESH = section(
    "mesh",
    "The devices, and how arrays are split over them.",
    data=Field(
        -1,
        "devices that split the batch alone; -1 = all that remain",
        also=(-1,),
        on_resume="may change",
    ),
    fsdp=Field(
        1,
        "devices that also split parameters and optimizer state; -1 = all that remain",
        also=(-1,),
        on_resume="may change",
    ),
    rules=Field(
        (),
        "ordered (regex on a parameter's path, spec) pairs; the first match wins",
        may_be_empty=True,
        check=check_sharding_rules,
        on_resume="may change",
    ),
)
