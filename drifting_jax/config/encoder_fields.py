"""The fields of a generator's frozen networks and of their features."""

from drifting_jax.config.encoder_lists import check_names, check_weights
from drifting_jax.config.field import Field, section
from drifting_jax.config.shared_fields import SCHEDULES

REMAT = Field(
    "auto",
    "what blocks compute again in the backward pass: nothing (none), all but products (dots), or"
    " everything (block); auto = as little as the memory allows in a generator's step",
    choices=("auto", "none", "dots", "block"),
    aliases={False: "none", True: "block", "False": "none", "True": "block"},
    on_resume="may change",
)
DTYPES = ("float32", "bfloat16")
CROPS = ("center", "random_resized")

ENCODER_NETWORK = section(
    "encoder",
    "The frozen network whose features the loss uses: a masked autoencoder (A.3).",
    kind=Field(
        "autoencoder",
        "none = the loss has the features of extra_encoder, pixel_encoders and the samples alone",
        choices=("autoencoder", "none"),
    ),
    weight=Field(1.0, "weight of the losses of its features", minimum=0),
    width=Field(32, "channels of the first stage; each later stage has twice as many"),
    blocks=Field((1, 1), "residual blocks of each stage"),
    groups=Field(8, "groups of each GroupNorm; must divide the width"),
    input_patch_size=Field(1, "side of the squares of pixels that become one input location"),
    mask_patch_size=Field(2, "side of a masked square, in input locations"),
    every_k_block=Field(1, "take features after every k-th residual block of a stage"),
    dtype=Field("float32", "dtype of the computation; parameters are float32", choices=DTYPES),
    remat=REMAT,
    path=Field(
        "",
        "workdir or weights of a trained encoder; empty = the run trains its own first",
        is_path=True,
    ),
)

ENCODER_TRAIN = section(
    "encoder.train",
    "The training of the encoder: masked reconstruction, then also classification (A.3).",
    num_steps=Field(1000, "steps, those with the classifier included"),
    batch_size=Field(128, "images per step"),
    crop=Field("center", "how the encoder's images are cropped", choices=CROPS),
    microbatches=Field(
        1, "parts of a batch, computed in turn and added up: less memory", on_resume="may change"
    ),
    learning_rate=Field(1e-3, "AdamW: rate after the warm-up"),
    schedule=Field(
        "constant", "rate after the warm-up; cosine falls to about zero", choices=SCHEDULES
    ),
    warmup_steps=Field(100, "steps over which the rate rises linearly", minimum=0),
    weight_decay=Field(0.01, "AdamW: decay of every parameter", minimum=0),
    b1=Field(0.9, "AdamW: decay of the mean of the gradients", minimum=0, below=1),
    b2=Field(0.95, "AdamW: decay of the mean of the squared gradients", minimum=0, below=1),
    clip_norm=Field(0.0, "largest global norm of the gradients; 0 = no clipping", minimum=0),
    ema_decay=Field(
        0.99, "decay of the average of the weights, which serves as encoder", minimum=0, below=1
    ),
    mask_ratio_min=Field(0.5, "smallest share of an image that is masked", minimum=0, maximum=1),
    mask_ratio_max=Field(0.5, "largest share; each image draws its own between the two", maximum=1),
    classifier_steps=Field(
        200, "last steps, in which a linear classifier is trained too; 0 = none", minimum=0
    ),
    classifier_weight=Field(
        0.1, "λ of λ·classification + (1 − λ)·reconstruction", minimum=0, maximum=1
    ),
    save_every=Field(500, "steps between two checkpoints", on_resume="may change"),
)

EXTRA_ENCODER = section(
    "extra_encoder",
    "A second frozen network, on pixels, whose features join those of the encoder (A.4).",
    kind=Field("none", "its network, or none"),
    path=Field("", "its weights: a folder, a file or hf://owner/repo", is_path=True),
    weight=Field(1.0, "weight of the losses of its features", minimum=0),
)

PIXEL_ENCODERS = section(
    "pixel_encoders",
    "Any number of further frozen networks on pixels, and how all of them see images.",
    kinds=Field(
        (), "their networks, as in extra_encoder.kind", may_be_empty=True, check=check_names
    ),
    paths=Field((), "the weights of each", may_be_empty=True, is_path=True, check=check_names),
    weights=Field(
        (),
        "weights of the losses of the features of each; () = 1",
        may_be_empty=True,
        check=check_weights,
    ),
    image_size=Field(
        0,
        "side to which images are resized for the networks of extra_encoder and of this list;"
        " 0 = 224",
        minimum=0,
    ),
    resize=Field(
        "auto",
        'how: "bicubic" is antialiased with a = −0.5, "bicubic_plain" is torch\'s default without'
        " antialiasing and with a = −0.75; auto = linear for ConvNeXt-V2, else bicubic",
        choices=("auto", "bicubic", "bicubic_plain", "linear"),
    ),
)

VAE = section(
    "vae",
    "The VAE that decodes latents, where `data.latent` is set.",
    path=Field("", "its weights: a folder, a file or hf://owner/repo", is_path=True),
)

FEATURES = section(
    "features",
    "What the loss takes from each feature map besides every location (A.5).",
    patch_sizes=Field(
        (2, 4), "means and stds over squares of these sides; empty = none", may_be_empty=True
    ),
    partial_patches=Field(
        False,
        "also take whole patches of sizes that do not divide a map; the release leaves them out",
        absent=True,
    ),
    joint_scale=Field(False, "all statistics of a map are one feature with one S and one norm"),
    total=Field(
        "sum",
        "how the losses are combined: weighted sum, weighted mean, or weighted mean over encoders,"
        " each with the mean of its features",
        choices=("sum", "mean", "mean_of_encoders"),
    ),
    input_rms=Field(
        True,
        "also the root mean square of each channel of the autoencoder's input, or of the sample"
        " where there is no autoencoder",
    ),
    raw=Field(True, "also the sample itself, flattened"),
    raw_weight=Field(
        1.0, "weight of the sample itself in the loss; 0 = it is measured alone", minimum=0
    ),
)
