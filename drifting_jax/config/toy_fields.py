"""The fields of a two-dimensional toy (5.1)."""

from drifting_jax.config.field import Field, section
from drifting_jax.config.shared_fields import (
    DRIFT,
    MESH,
    NUM_WORKERS,
    OPTIM,
    PROFILE,
    RUN,
    STEPS,
)

_RUN = section(
    "",
    RUN.doc,
    **RUN.with_defaults(task="toy").fields,
    start=Field(
        "collapsed",
        'where the samples start: "collapsed" on one mode, "between" the modes, or "far" away',
        choices=("collapsed", "between", "far"),
    ),
)

_DATA = section(
    "data",
    "The points that a run trains on.",
    target=Field(
        "two_modes",
        "the distribution of the points",
        choices=("two_modes", "eight_gaussians", "checkerboard", "two_moons"),
    ),
    num_samples=Field(50000, "points in the data set"),
    num_workers=NUM_WORKERS,
)

_MODEL = section(
    "model",
    "An MLP that maps noise to a point of the plane.",
    noise_features=Field(32, "normal random numbers that a point is made from"),
    widths=Field((256, 256, 256), "channels of each hidden layer"),
)

# With the floor of 1e-6 the field of a 2-D toy is frozen; a large temperature lets samples move
# between modes that lie far apart.
_DRIFT = DRIFT.with_defaults(affinity_floor=0.0, temperatures=(0.05, 0.2, 1.0))

_OPTIM = OPTIM.with_defaults(
    learning_rate=1e-3, schedule="cosine", warmup_steps=50, weight_decay=0.0
)

_TRAIN = section(
    "train",
    "The training of the toy.",
    **STEPS.with_defaults(num_steps=2000, ema_decays=(0.99,)).fields,
    generated=Field(256, "generated points per step"),
    positives=Field(256, "real points per step"),
)

_EVAL = section(
    "eval",
    "The evaluation after training.",
    num_samples=Field(4096, "points that are measured", on_resume="may change"),
    directions=Field(256, "projections of the sliced Wasserstein distance", on_resume="may change"),
    ema_decay=Field(
        0.99,
        "decay of the average that is measured; one of train.ema_decays",
        below=1,
        on_resume="may change",
    ),
)

TOY = (_RUN, _DATA, _MODEL, _DRIFT, _OPTIM, _TRAIN, _EVAL, MESH, PROFILE)
