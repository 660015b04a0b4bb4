"""The fields of a generator that learns from pairs of a condition and an image."""

import dataclasses

from drifting_jax.config.encoder_fields import REMAT
from drifting_jax.config.field import Field, Section, section
from drifting_jax.config.generator_fields import MODEL, UNET
from drifting_jax.config.shared_fields import (
    DRIFT,
    MESH,
    NUM_WORKERS,
    OPTIM,
    PROFILE,
    RUN,
)
from drifting_jax.config.single_target_fields import EVAL, SINGLE_TARGET, TRAIN


def _without(part: Section, *names: str) -> Section:
    """The section without some of its fields."""
    kept = {name: field for name, field in part.fields.items() if name not in names}
    return dataclasses.replace(part, fields=kept)


_DATA = section(
    "data",
    "The pairs that a run trains on.",
    path=Field(
        "",
        ".npz file with the arrays condition [n, ...] and image [n, h, w, c]",
        is_path=True,
        on_resume="may change",
    ),
    held_out=Field(0, "the last pairs, which are measured and not trained on", minimum=0),
    num_workers=NUM_WORKERS,
)

_MODEL = (
    _without(MODEL, "init_from", "num_style_books", "styles_per_book", "attention_kernel")
    .changed(
        "kind",
        doc="a transformer with a token for each patch, a U-Net with fields of its own, or an MLP"
        " of whole images",
        choices=("dit", "unet", "mlp"),
    )
    .changed("width", doc="channels of a token or layer; of a unet, what its multipliers multiply")
    .changed("depth", doc="blocks of a dit or an mlp")
    .changed("mlp_ratio", doc="dit, mlp: width of a block's feed-forward network over the width")
    .changed(
        "remat",
        default="none",
        choices=tuple(x for x in REMAT.choices if x != "auto"),
        doc="what blocks compute again in the backward pass: nothing (none), all but products"
        " (dots), or everything (block)",
    )
)

_CONDITION = section(
    "condition",
    "What a sample is conditioned on, and the network that makes one vector of it.",
    kind=Field(
        "vector",
        "any array, which the network sees as the vector alone (vector), or a map [h, w, c] whose"
        " sides divide the image's, which it also sees beside its noise (map)",
        choices=("vector", "map"),
    ),
    width=Field(256, "channels of the vector and of each layer"),
    depth=Field(2, "layers"),
)

PAIRS = (
    RUN.with_defaults(task="pairs"),
    _DATA,
    _MODEL,
    _without(UNET, "dropout", "condition_width"),
    _CONDITION,
    DRIFT.with_defaults(field="fair_energy"),
    SINGLE_TARGET,
    OPTIM,
    TRAIN,
    EVAL,
    MESH,
    PROFILE,
)
