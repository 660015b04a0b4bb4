"""Every field of a config with its default value: the one place to add, rename or remove a field.

A field's type is the type of its default: an int may stand for a float, nothing else is converted;
a tuple may change its length, its entries keep the type of the first. No field is ever None: where
a field can be switched off, its comment says which value does it. The tables at the end say what a
value may be, whatever the task.
"""

from typing import Any

# The drifting field (Algorithm 2) as the paper sets it.
_DRIFT = {
    "field": "mean_shift",  # a name of the table in method/fields/table.py
    "temperatures": (0.02, 0.05, 0.2),  # τ of the kernels, in units of the mean distance S
    "affinity_floor": 1e-6,  # floor under softmax·softmax, before the root; 0 = none
    "normalize": "both",  # softmax over samples and targets "both", over "targets" alone, "none"
    "combine": "crossed",  # "crossed": each side weighed by the other's total; or "separate"
    "kernel": "laplacian",  # "laplacian" exp(−dist/τ) of (12), or "gaussian" exp(−dist²/2τ²)
    "attraction": 1.0,  # factor on V⁺; anything but 1 breaks the anti-symmetry (Table 1)
    "repulsion": 1.0,  # factor on V⁻; likewise
}

_MESH = {
    "data": -1,  # devices that split the batch alone; -1 = all that remain
    "fsdp": 1,  # devices that also split parameters and optimizer state; -1 = all that remain
    "rules": (),  # ordered (regex on the parameter's path, spec) pairs; the first match wins
}

# For mesh.rules: the output channels of every large array of our networks over `fsdp`.
FSDP_RULES = (
    ("blocks/.*kernel", (None, None, "fsdp")),  # stacked, model.scan
    ("classifier/kernel", ("fsdp",)),  # whose thousand classes seldom divide
    ("(conv|head|stem|downsample)/kernel", (None, None, None, "fsdp")),
    ("kernel", (None, "fsdp")),
    ("style_books", (None, None, "fsdp")),
    ("embedding", (None, "fsdp")),
)

# The paper's masked autoencoder (A.3), for config.encoder.update: all but width and patches.
PAPER_ENCODER = {
    "blocks": (3, 4, 6, 3),
    "groups": 32,
    "every_k_block": 2,
    "dtype": "bfloat16",
    "remat": True,
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

_IMAGES = {
    "task": "",  # of the two tables below
    "seed": 0,  # root of every random number of the run
    "log_every": 50,  # steps between two lines of metrics
    "data": {
        "source": "digits",  # "digits", "mnist", "cifar10", "imagenet", or "images" of one's own
        "image_size": 256,  # side of the crops of the last two; the others have a size of their own
        "latent": False,  # train on the VAE's latents of the images, an eighth of the side
        "path": "",  # folder of the images, shards, latents or tfds data set; digits need none
        "num_workers": 0,  # processes that read ahead, one a core at most; 0 = the training process
        "flip": False,  # random horizontal flips
        "crop": "center",  # of the generator's images; or "random_resized"
        "crop_min_area": 0.2,  # least share of an image that a random crop covers
        "decoder": "pillow",  # the reference; or "opencv", faster, a few grey levels off
        "log_batches": False,  # write the records of every batch to batches_<process>.jsonl
        "max_unreadable": 0.1,  # share of the data set; more unreadable images stop the run
    },
    "encoder": {  # the frozen network whose features carry the loss: a masked autoencoder (A.3)
        "width": 32,  # channels of the first stage, doubled at each later one
        "blocks": (1, 1),  # residual blocks of each stage
        "groups": 8,  # of the GroupNorms; divides the width
        "input_patch_size": 1,  # pixels folded into channels before the stem
        "mask_patch_size": 2,  # side of a masked square, on the patchified grid
        "every_k_block": 1,  # features after every k-th residual block of a stage
        "dtype": "float32",  # of the computation, "float32" or "bfloat16"; parameters stay float32
        "remat": False,  # compute blocks again in the backward pass: less memory, more time
        "path": "",  # workdir or weights of one that is trained; empty = trained here, first
        "train": {
            "num_steps": 1000,  # classifier steps included
            "batch_size": 128,
            "crop": "center",  # of its images; or "random_resized"
            "microbatches": 1,  # parts of a batch whose gradients are added up one after another
            "learning_rate": 1e-3,
            "schedule": "constant",  # after the warm-up; or "cosine", to zero at num_steps
            "warmup_steps": 100,
            "weight_decay": 0.01,
            "b1": 0.9,
            "b2": 0.95,
            "clip_norm": 0.0,  # global norm; 0 = no clipping
            "ema_decay": 0.99,  # of the weights that are used as the encoder
            "mask_ratio_min": 0.5,  # each image draws its share of masked squares between the two
            "mask_ratio_max": 0.5,
            "classifier_steps": 200,  # last steps, with a linear classifier beside; 0 = none
            "classifier_weight": 0.1,  # λ of λ·classification + (1 − λ)·reconstruction
            "save_every": 500,  # steps between two checkpoints
        },
    },
    "extra_encoder": {  # a second frozen network, on pixels, whose features join (A.4)
        "kind": "none",  # "none", "convnext", "resnet" or "dinov2"
        "path": "",  # its weights: a folder, a file or hf://owner/repo
    },
    "vae": {"path": ""},  # weights of the VAE of data.latent, likewise
    "features": {  # what is taken from each feature map (A.5), besides every location
        "patch_sizes": (2, 4),  # means and stds over squares of these sides; empty = none
        "input_rms": True,  # the per-channel root mean square of the encoder's input
        "raw": True,  # the sample itself, flattened
    },
    "model": {  # the generator, a DiT (A.2)
        "patch_size": 2,
        "width": 128,
        "depth": 4,
        "num_heads": 4,  # divides the width
        "mlp_ratio": 4.0,
        "num_context_tokens": 4,  # in-context tokens made from the condition; 0 = none
        "num_style_books": 8,  # style embeddings added to the condition
        "styles_per_book": 16,  # entries of each; 0 = no styles
        "dtype": "float32",  # of the computation, "float32" or "bfloat16"; parameters stay float32
        "attention_dtype": "float32",  # of queries, keys, values and softmax; likewise
        "remat": False,  # compute blocks again in the backward pass: less memory, more time
        "scan": False,  # compile one block for all: less to compile
    },
    "drift": _DRIFT,
    "guidance": {  # α at training time (3.5, A.7)
        "minimum": 1.0,
        "maximum": 4.0,
        "power": 3.0,  # density ∝ α^−power; 0 = uniform, 1 = log-uniform
        "probability_of_one": 0.0,  # share of rows with α = 1
    },
    "queue": {  # real samples held on the devices (A.8)
        "per_class": 64,  # newest samples kept of each class
        "unconditional": 512,  # newest samples kept of all classes together
        "push_per_step": 64,  # new real samples a step
        "allow_repeats": False,  # a class with fewer samples than a row draws may repeat them
    },
    "optim": {  # AdamW, gradients clipped before it; constant rate after a linear warm-up
        "learning_rate": 4e-4,
        "schedule": "constant",  # after the warm-up; or "cosine", to zero at num_steps
        "warmup_steps": 200,
        "weight_decay": 0.01,
        "b1": 0.9,
        "b2": 0.95,
        "clip_norm": 2.0,  # global norm; 0 = no clipping
    },
    "train": {
        "num_steps": 3000,
        "labels_per_step": 10,  # c
        "generated_per_label": 16,  # g
        "positives_per_label": 32,  # p
        "unconditional_per_label": 16,  # u; 0 = no unconditional negatives
        "microbatches": 1,  # pieces of the rows, each in its turn, at twice the work; 0 = as needed
        "shared_statistics": "batch",  # S and drift norms over all rows; "microbatch": by piece
        "ema_decays": (0.99, 0.999),  # one average of the weights for each
        "save_every": 500,  # steps between two checkpoints
        "sample_every": 500,  # steps between two grids of samples
        "keep": 2,  # newest checkpoints kept
        "keep_every": 0,  # steps of which each multiple is saved and kept for ever; 0 = none
        "max_skipped_in_a_row": 20,  # non-finite steps in a row after which the run stops
    },
    "eval": {
        "cfg_scales": (1.0, 1.5, 2.0),  # every α the samples are measured at
        "samples_per_class": 50,
        "ema_decay": 0.999,  # which average of the weights is measured; one of train.ema_decays
        "k": 5,  # neighbours, in precision and recall
        "every": 0,  # steps between two measurements in the middle of training; 0 = none
        # Then, of images larger than CIFAR-10's:
        "num_samples": 50000,
        "reference": "",  # .npz file of statistics of real images
        "inception": "",  # weights of Inception; empty for the usual folder
    },
    "mesh": _MESH,
}

_TOY = {
    "task": "toy",
    "seed": 0,  # root of every random number of the run
    "log_every": 50,  # steps between two lines of metrics
    "data": {
        "target": "two_modes",  # "two_modes", "eight_gaussians", "checkerboard" or "two_moons"
        "num_samples": 50000,
        "num_workers": 0,  # processes that read ahead, one a core at most; 0 = the training process
    },
    "start": "collapsed",  # of q (5.1): "collapsed" on one mode, "between" the modes, or "far"
    "model": {  # an MLP from noise to a point of the plane
        "noise_features": 32,
        "widths": (256, 256, 256),
    },
    # The floor freezes the field of a 2-D toy; a long range lets mass move between far modes.
    "drift": {**_DRIFT, "affinity_floor": 0.0, "temperatures": (0.05, 0.2, 1.0)},
    "optim": {
        "learning_rate": 1e-3,
        "schedule": "cosine",  # after the warm-up; or "constant"
        "warmup_steps": 50,
        "weight_decay": 0.0,
        "b1": 0.9,
        "b2": 0.95,
        "clip_norm": 2.0,  # global norm; 0 = no clipping
    },
    "train": {
        "num_steps": 2000,
        "generated": 256,  # generated points a step
        "positives": 256,  # real points a step
        "ema_decays": (0.99,),  # one average of the weights for each
        "save_every": 500,  # steps between two checkpoints
        "keep": 2,  # newest checkpoints kept
        "keep_every": 0,  # steps of which each multiple is saved and kept for ever; 0 = none
        "max_skipped_in_a_row": 20,  # non-finite steps in a row after which the run stops
    },
    "eval": {
        "num_samples": 4096,
        "directions": 256,  # projections of the sliced Wasserstein distance
        "ema_decay": 0.99,  # which average of the weights is measured; one of train.ema_decays
    },
    "mesh": _MESH,
}

# An encoder by itself has the sections of a generator, of which it reads its own.
DEFAULTS: dict[str, dict[str, Any]] = {
    "generator": _IMAGES | {"task": "generator"},
    "encoder": _IMAGES | {"task": "encoder"},
    "toy": _TOY,
}

CHOICES = {
    "data.source": ("digits", "mnist", "cifar10", "imagenet", "images"),
    "data.crop": ("center", "random_resized"),
    "data.decoder": ("pillow", "opencv"),
    "encoder.train.crop": ("center", "random_resized"),
    "data.target": ("two_modes", "eight_gaussians", "checkerboard", "two_moons"),
    "train.shared_statistics": ("batch", "microbatch"),
    "start": ("collapsed", "between", "far"),
    "model.dtype": ("float32", "bfloat16"),
    "model.attention_dtype": ("float32", "bfloat16"),
    "encoder.dtype": ("float32", "bfloat16"),
    "extra_encoder.kind": ("none", "convnext", "resnet", "dinov2"),
    "drift.normalize": ("both", "targets", "none"),
    "drift.combine": ("crossed", "separate"),
    "drift.kernel": ("laplacian", "gaussian"),
    "optim.schedule": ("constant", "cosine"),
    "encoder.train.schedule": ("constant", "cosine"),
}
# Every number is above zero, but for these, which may be zero, and the mesh, which may be -1.
MAY_BE_ZERO = {
    "seed",
    "data.num_workers",
    "data.max_unreadable",
    "encoder.train.warmup_steps",
    "encoder.train.weight_decay",
    "encoder.train.ema_decay",
    "encoder.train.mask_ratio_min",
    "encoder.train.classifier_steps",
    "encoder.train.classifier_weight",
    "model.num_context_tokens",
    "model.styles_per_book",
    "eval.every",
    "drift.affinity_floor",
    "drift.attraction",
    "drift.repulsion",
    "guidance.power",
    "guidance.probability_of_one",
    "optim.warmup_steps",
    "optim.weight_decay",
    "optim.b1",
    "optim.b2",
    "optim.clip_norm",
    "encoder.train.b1",
    "encoder.train.b2",
    "encoder.train.clip_norm",
    "train.ema_decays",
    "train.keep_every",
    "train.microbatches",
    "train.unconditional_per_label",
}
AT_MOST_ONE = {
    "data.crop_min_area",
    "data.max_unreadable",
    "encoder.train.mask_ratio_min",
    "encoder.train.mask_ratio_max",
    "encoder.train.classifier_weight",
    "guidance.probability_of_one",
}
BELOW_ONE = {
    "encoder.train.ema_decay",
    "train.ema_decays",
    "eval.ema_decay",
    "optim.b1",
    "optim.b2",
    "encoder.train.b1",
    "encoder.train.b2",
}
MAY_BE_EMPTY = {"features.patch_sizes", "mesh.rules"}
