"""The fields of a generator; an encoder by itself has the same sections and reads its own."""

from drifting_jax.config.ema_widths import check_ema_widths
from drifting_jax.config.encoder_fields import (
    CROPS,
    DTYPES,
    ENCODER_NETWORK,
    ENCODER_TRAIN,
    EXTRA_ENCODER,
    FEATURES,
    PIXEL_ENCODERS,
    REMAT,
    VAE,
)
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

_IMAGE_DATA = section(
    "data",
    "The images that a run trains on.",
    source=Field(
        "digits",
        'the data set; "images" is a folder of your own images',
        choices=("digits", "mnist", "fashion_mnist", "cifar10", "cifar100", "imagenet", "images"),
    ),
    image_size=Field(256, "side of the crops of imagenet and images; the others have a fixed size"),
    latent=Field(False, "train on the VAE's latents of the images, with an eighth of the side"),
    path=Field(
        "",
        "folder of the images, shards or latents, or of the files of MNIST or CIFAR",
        is_path=True,
        on_resume="may change",
    ),
    labels=Field(True, "train with the labels of the data; False = all images are of one class"),
    num_workers=NUM_WORKERS,
    flip=Field(False, "flip half of the images horizontally, at random"),
    crop=Field("center", "how the generator's images are cropped", choices=CROPS),
    crop_min_area=Field(0.2, "smallest share of an image that a random crop covers", maximum=1),
    decoder=Field(
        "pillow",
        'decoder of the image files; "opencv" is faster and differs by a few grey levels',
        choices=("pillow", "opencv"),
    ),
    log_batches=Field(
        False,
        "write which records each batch holds to batches_<process>.jsonl",
        on_resume="may change",
    ),
    max_unreadable=Field(
        0.1,
        "share of the data set; the run stops when more images than this cannot be read",
        minimum=0,
        maximum=1,
        on_resume="may change",
    ),
)

MODEL = section(
    "model",
    "The generator (A.2).",
    kind=Field("dit", 'architecture; "dit" is the paper\'s, "unet" has fields of its own'),
    init_from=Field(
        "",
        "weights of a generator to start from: a folder or hf://owner/repo; empty = random ones",
        is_path=True,
    ),
    patch_size=Field(2, "side of a patch, in pixels or latent locations"),
    width=Field(128, "channels of a token; of a unet, what its multipliers multiply"),
    depth=Field(4, "dit: number of transformer blocks"),
    num_heads=Field(4, "attention heads; must divide the width"),
    mlp_ratio=Field(4.0, "dit: width of a block's feed-forward network over the width of a token"),
    num_context_tokens=Field(
        4, "dit: in-context tokens made from the condition; 0 = none", minimum=0
    ),
    num_style_books=Field(8, "style embeddings that are added to the condition"),
    styles_per_book=Field(16, "entries that each of them is drawn from; 0 = no styles", minimum=0),
    dtype=Field("float32", "dtype of the computation; parameters are float32", choices=DTYPES),
    attention_dtype=Field("float32", "dtype of the attention's computation", choices=DTYPES),
    attention_kernel=Field(
        "auto",
        "matrix products (products), or one kernel on an NVIDIA GPU (fused); auto = fused in the"
        " training on GPUs from Ampere on",
        choices=("auto", "products", "fused"),
        absent="products",
        on_resume="may change",
    ),
    remat=REMAT,
    scan=Field(False, "dit: compile one block and use it for all: shorter compilation"),
)

UNET = section(
    "model.unet",
    "What a generator of the kind unet has besides; a level has half the side of the one before.",
    multipliers=Field((1, 2, 2, 2), "channels of each level over the width"),
    blocks_per_level=Field(2, "residual blocks of a level on the way down; one more on the way up"),
    attention_sides=Field(
        (16,),
        "sides of the levels, in patches, that have attention; the middle has it in any case",
        may_be_empty=True,
    ),
    groups=Field(32, "groups of each GroupNorm; must divide the width"),
    dropout=Field(
        0.0, "share of a block's entries that are zero, in training alone", minimum=0, below=1
    ),
    condition_width=Field(
        512,
        "channels of the condition: class, styles and α; 0 = none, for data of one class without"
        " guidance",
        minimum=0,
    ),
)

_GUIDANCE = section(
    "guidance",
    "The guidance scale α of each class row in training (3.5, A.7).",
    minimum=Field(1.0, "smallest α; 1 = guidance is off", minimum=1),
    maximum=Field(4.0, "largest α"),
    power=Field(3.0, "α has a density ∝ α^−power; 0 = uniform, 1 = log-uniform", minimum=0),
    probability_of_one=Field(
        0.0, "share of the class rows that have α = 1 instead", minimum=0, maximum=1
    ),
)

_QUEUE = section(
    "queue",
    "The real samples that the devices hold (A.8).",
    kind=Field(
        "class",
        "the newest samples of each class (class), or the whole data set on every device, drawn"
        " without replacement (dataset); with dataset the other fields, but for allow_repeats, have"
        " no effect",
        choices=("class", "dataset"),
    ),
    per_class=Field(64, "newest samples kept of each class"),
    unconditional=Field(512, "newest samples kept of all classes together"),
    push_per_step=Field(64, "real samples added per step"),
    allow_repeats=Field(False, "a class with fewer samples than a row draws may repeat them"),
)

_TRAIN = section(
    "train",
    "The training of the generator (3.3, A.8).",
    **STEPS.fields,
    ema_widths=Field(
        (),
        "relative widths of power-function averages, such as (0.05, 0.1): snapshots of them give an"
        " average of any width after training; () = none",
        may_be_empty=True,
        check=check_ema_widths,
    ),
    snapshot_every=Field(
        0,
        "steps between two snapshots of the averages of ema_widths; 0 = a 32nd of the run",
        minimum=0,
        on_resume="may change",
    ),
    labels_per_step=Field(10, "class rows per step, c"),
    generated_per_label=Field(16, "generated samples of each class row, g"),
    positives_per_label=Field(32, "real samples of its class, p"),
    unconditional_per_label=Field(16, "real samples of any class, u; 0 = none", minimum=0),
    nearest_positives=Field(
        0,
        "positives of a row that are the nearest of its class to a random one; falls to 0 by steps"
        " over nearest_share of the run; 0 = all are uniform",
        minimum=0,
    ),
    nearest_share=Field(
        1.0, "share of the run after which no positive is drawn for being near", maximum=1
    ),
    microbatches=Field(
        1,
        "parts of the rows, or where it does not divide them of the samples of every row, computed"
        " in turn: less memory, more work; 0 = as many as needed",
        minimum=0,
        on_resume="may change",
    ),
    keep_maps=Field(
        "auto",
        "keep the encoders' maps of all microbatches on the device or in its host's memory, or"
        " compute them in each of three passes; auto = as the memory allows",
        choices=("auto", "yes", "host", "no"),
        on_resume="may change",
    ),
    shared_statistics=Field(
        "batch",
        "S and the norms of the drift are over all class rows, over each microbatch alone, or"
        " those of the step before",
        choices=("batch", "microbatch", "previous"),
    ),
    sample_every=Field(500, "steps between two pictures of samples", on_resume="may change"),
)

_EVAL = section(
    "eval",
    "The evaluation, during and after training.",
    cfg_scales=Field(
        (1.0, 1.5, 2.0), "guidance scales α that samples are measured at", on_resume="may change"
    ),
    samples_per_class=Field(
        50, "for images up to CIFAR's size: samples of each class", on_resume="may change"
    ),
    ema_decay=Field(
        0.999,
        "decay of the average that is measured; one of train.ema_decays",
        below=1,
        on_resume="may change",
    ),
    k=Field(5, "number of neighbours in precision and recall", on_resume="may change"),
    every=Field(
        0,
        "steps between two measurements during training; 0 = none",
        minimum=0,
        on_resume="may change",
    ),
    num_samples=Field(
        50000, "for larger images: samples that are measured", on_resume="may change"
    ),
    reference=Field(
        "",
        "for larger images: .npz file of statistics of real images",
        is_path=True,
        on_resume="may change",
    ),
    inception=Field(
        "",
        "for larger images: weights of Inception; empty = the usual folder",
        is_path=True,
        on_resume="may change",
    ),
)

GENERATOR = (
    RUN,
    _IMAGE_DATA,
    ENCODER_NETWORK,
    ENCODER_TRAIN,
    EXTRA_ENCODER,
    PIXEL_ENCODERS,
    VAE,
    FEATURES,
    MODEL,
    UNET,
    DRIFT,
    _GUIDANCE,
    _QUEUE,
    OPTIM,
    _TRAIN,
    _EVAL,
    MESH,
    PROFILE,
)
_OF_ENCODERS = {
    "": RUN.with_defaults(task="encoder"),
    "encoder.train": ENCODER_TRAIN.changed("num_steps", on_resume="may grow"),
    "train": _TRAIN.changed("num_steps", on_resume="fixed"),
}
ENCODER = tuple(_OF_ENCODERS.get(part.name, part) for part in GENERATOR)
