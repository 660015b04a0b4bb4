"""The fields of a policy (5.3)."""

from drifting_jax.config.field import Field, section
from drifting_jax.config.shared_fields import (
    DRIFT,
    MESH,
    NUM_WORKERS,
    OPTIM,
    PROFILE,
    RUN,
)
from drifting_jax.config.single_target_fields import EVAL, SINGLE_TARGET, TRAIN

_RUN = RUN.with_defaults(task="policy")

_DATA = section(
    "data",
    "The demonstrations that a run trains on.",
    path=Field("", "file or folder of the demonstrations", is_path=True, on_resume="may change"),
    format=Field(
        "auto",
        "how they are stored; auto = by the name of the file or folder",
        choices=("auto", "npz", "robomimic", "zarr", "lerobot"),
        on_resume="may change",
    ),
    observation_keys=Field(
        (),
        "names of the arrays that are put side by side as observations; empty = the usual ones",
        may_be_empty=True,
        on_resume="may change",
    ),
    action_key=Field(
        "", "name of the array of actions; empty = the usual one", on_resume="may change"
    ),
    observation_horizon=Field(2, "observations that a policy sees, the last one of the moment"),
    prediction_horizon=Field(16, "actions that it predicts, from its first observation on"),
    action_horizon=Field(8, "actions that are carried out, from its last observation on"),
    held_out_episodes=Field(
        0, "the last episodes, which are measured and not trained on", minimum=0
    ),
    num_workers=NUM_WORKERS,
)

_MODEL = section(
    "model",
    "The network that maps noise and observations to a chunk of actions.",
    kind=Field(
        "mlp",
        "an MLP of whole chunks, or a transformer with a token for each action",
        choices=("mlp", "transformer"),
    ),
    init_from=Field(
        "",
        "policy to start from: a folder for the Hub, which convert --to=hub writes of a workdir,"
        " or hf://owner/repo; empty = random",
        is_path=True,
    ),
    width=Field(256, "channels of each layer or token"),
    depth=Field(2, "blocks"),
    mlp_ratio=Field(2.0, "width of a block's feed-forward network over width"),
    num_heads=Field(4, "heads of a transformer's attention; must divide the width"),
    num_context_tokens=Field(
        4, "tokens of a transformer that are made of the condition", minimum=0
    ),
)

_CONDITION = section(
    "condition",
    "The network that makes one vector of the observations.",
    width=Field(256, "channels of the vector and of each layer"),
    depth=Field(2, "layers"),
)

# The largest kernel reaches samples that are far from their target (docs/rollouts.md).
_DRIFT = DRIFT.with_defaults(field="mmd", temperatures=(0.05, 0.2, 1.0, 3.0))

_OPTIM = OPTIM.with_defaults(learning_rate=1e-3, schedule="cosine", weight_decay=1e-4)

_TRAIN = TRAIN.with_defaults(num_steps=2000, conditions=128, generated=16)
_EVAL = EVAL.with_defaults(conditions=512, samples=32, ema_decay=0.99)

POLICY = (
    _RUN,
    _DATA,
    _MODEL,
    _CONDITION,
    _DRIFT,
    SINGLE_TARGET,
    _OPTIM,
    _TRAIN,
    _EVAL,
    MESH,
    PROFILE,
)
