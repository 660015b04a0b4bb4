"""The sections of tasks whose conditions have a single target each: policies and pairs."""

from drifting_jax.config.field import Field, section
from drifting_jax.config.shared_fields import STEPS

SINGLE_TARGET = section(
    "single_target",
    "What helps where a condition has one target alone.",
    statistics=Field(
        "batch",
        "what the scale S and the norm of the drift are taken over: the rows of a step together"
        " (batch), or each row by itself (row)",
        choices=("batch", "row"),
    ),
    learned_temperature=Field(
        False,
        "learn the temperature; it begins at drift.temperatures, which then has one entry",
    ),
    temperature_rate=Field(0.01, "learning rate of the logarithm of a learned temperature"),
    neighbours=Field(
        0, "further positives of a row: targets of the conditions nearest to its own", minimum=0
    ),
    neighbour_width=Field(
        0.05,
        "width of the Gaussian that weighs them by the distance of the conditions, the root mean"
        " square over the dimensions, each from -1 to 1",
    ),
)

TRAIN = section(
    "train",
    "The training of the network.",
    **STEPS.fields,
    conditions=Field(32, "rows of a step: conditions, each with its target"),
    generated=Field(8, "generated samples of a row"),
    sample_every=Field(500, "steps between two pictures", on_resume="may change"),
)

EVAL = section(
    "eval",
    "The measurement after training.",
    conditions=Field(256, "conditions that are measured", on_resume="may change"),
    samples=Field(16, "samples for each of them", minimum=2, on_resume="may change"),
    ema_decay=Field(
        0.999,
        "decay of the average that is measured; one of train.ema_decays",
        below=1,
        on_resume="may change",
    ),
)
