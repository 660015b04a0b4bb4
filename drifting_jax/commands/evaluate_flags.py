"""The flags of `evaluate`: which of them go together, and what they describe."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from drifting_jax.distributed import processes
from drifting_jax.errors import UserError
from drifting_jax.evaluation.features.image_set import ImageSet
from drifting_jax.evaluation.features.image_sets import describe_images, open_images
from drifting_jax.evaluation.image_evaluation import prepare_setup
from drifting_jax.evaluation.metrics.catalogue import IMAGES, metrics_for
from drifting_jax.evaluation.protocol import PROTOCOLS
from drifting_jax.evaluation.setup import (
    EvaluationSetup,
    SampleSet,
    Settings,
    generated_sample_sets,
)
from drifting_jax.steps.generator import Generator

# What is measured, and so which flags have a meaning: one of these flags, or one of these words.
SOURCES = ("workdir", "weights", "images")
SMALL, REFERENCE, NEAREST = "a run of small images", "reference", "--nearest"
PROTOCOL = "a run of small images with --protocol"
_METRICS = metrics_for(IMAGES)
# {flag: what it goes with}; other flags go with everything.
_GOES_WITH = {
    "workdir": ("workdir", SMALL, PROTOCOL, NEAREST),
    "weights": ("weights",),
    "images": ("images", REFERENCE),
    **dict.fromkeys(("step", "ema_decay", "ema_sigma"), ("workdir", SMALL, PROTOCOL)),
    **dict.fromkeys(("cfg_scales", "seeds"), ("workdir", "weights", SMALL, PROTOCOL)),
    "num_samples": ("workdir", "weights", PROTOCOL),
    "vae": ("workdir", "weights"),
    "training_images": ("workdir", "weights", NEAREST),
    **dict.fromkeys(("split", "image_size"), ("images", REFERENCE)),
    "reference": SOURCES,
    "k": (*SOURCES, PROTOCOL),
    **dict.fromkeys(
        ("figures", "inception", "dinov2", "max_excluded", "keep_features", "out", "batch_size"),
        (*SOURCES, REFERENCE, PROTOCOL),
    ),
    "keep": (REFERENCE,),
    "sweep": (SMALL,),
    "protocol": (SMALL, PROTOCOL),
    "nearest": (NEAREST,),
}


def define_flags() -> None:
    """Registers the command line's flags."""
    flags.DEFINE_string("workdir", "", "Directory of the run to measure.")
    flags.DEFINE_string("weights", "", "Instead: an artifact of the paper's release, or ours.")
    flags.DEFINE_string("images", "", "Instead: a folder, a data set or an .npz of images.")
    flags.DEFINE_enum("split", "train", ("train", "test"), "Split of --images.")
    flags.DEFINE_integer("image_size", 0, "Side of centre crops of --images; 0: as they are.")
    flags.DEFINE_string("vae", "", "Decoder of latents: folder or hf://….")
    flags.DEFINE_float("ema_decay", None, "Moving average to measure; default: the config's.")
    flags.DEFINE_float("ema_sigma", None, "Instead: relative width of a power-function average.")
    flags.DEFINE_integer("step", None, "Step of the checkpoint; default: the last.", lower_bound=0)
    flags.DEFINE_list("cfg_scales", [], "Guidance scales alpha; default: the config's, or 1.")
    flags.DEFINE_list("seeds", [], "Seeds of the noise: 0,1,2; default: the config's, or 0.")
    flags.DEFINE_bool("sweep", False, "Compare every average of a run of small images, at every α.")
    flags.DEFINE_bool("nearest", False, "Only show nearest training images of a run on a folder.")
    flags.DEFINE_enum(
        "protocol",
        "",
        ("", *PROTOCOLS),
        "Of a run of small images: FID and others against the training split, as published.",
    )
    flags.DEFINE_integer("num_samples", 50000, "Samples of each alpha and seed.", lower_bound=2)
    flags.DEFINE_string("reference", "", "Statistics of real images, an .npz file.")
    flags.DEFINE_list("figures", [], f"Metrics, of {', '.join(_METRICS)}; default: all possible.")
    flags.DEFINE_integer("k", 5, "Neighbours that make a ball.", lower_bound=1)
    flags.DEFINE_string("inception", "", "Weights of Inception; default: the usual folder.")
    flags.DEFINE_string("dinov2", "", "Weights of DINOv2; default: the usual folder.")
    flags.DEFINE_string("training_images", "", "For nearest neighbours; default: the config's.")
    flags.DEFINE_integer("batch_size", 64, "Images at once on each device.", lower_bound=1)
    flags.DEFINE_float("max_excluded", 0.001, "Share of images that may be left out as damaged.")
    flags.DEFINE_bool("keep_features", False, "Keep features on the disk, to use again.")
    flags.DEFINE_integer("keep", 10000, "reference: features kept of each network.", lower_bound=2)
    flags.DEFINE_string("out", "", "Folder of the results; default: <workdir>/evaluation.")
    flags.DEFINE_string("coordinator", None, "host:port of process 0, if several.")
    flags.DEFINE_integer("num_processes", None, "Processes of the job, if several.")
    flags.DEFINE_integer("process_id", None, "Number of this process, if several.")


def check_flags(values: Any, mode: str) -> None:
    """Makes sure that no flag is ignored.

    Args:
      values: absl's flags.
      mode: one of `SOURCES`, `SMALL`, `PROTOCOL`, `REFERENCE` or `NEAREST`.

    Raises:
      UserError: a flag has no meaning for what is measured.
    """
    for name, modes in _GOES_WITH.items():
        if values[name].present and mode not in modes:
            told = [x for x in modes if x != PROTOCOL or SMALL not in modes]
            listed = " and ".join(map(_words_of, told))
            raise UserError(f"--{name} goes with {listed}, not with {_words_of(mode)}")


def source_of(values: Any) -> str:
    """The one flag of `SOURCES` that is given.

    Raises:
      UserError: none or several are.
    """
    given = [name for name in SOURCES if values[name].value]
    if len(given) != 1:
        found = " and ".join(given) or "none"
        raise UserError(f"expected one of --workdir, --weights and --images; found {found}")
    return given[0]


def setup_of(
    values: Any, out: Path, *, stopped: Callable[[], bool]
) -> tuple[EvaluationSetup, list[str]]:
    """What to measure with, and notes on the weights of its networks; all processes call it.

    Raises:
      UserError: an unknown metric, a share that is not from 0 to 1, or as `prepare_setup`.
    """
    return prepare_setup(
        _settings_of(values),
        out=out,
        weights={"inception": values.inception, "dinov2": values.dinov2},
        required=bool(values.figures or values.dinov2),
        reference=values.reference,
        batch_size=values.batch_size,
        keep_features=values.keep_features,
        stopped=stopped,
    )


def sample_sets_of(values: Any, generator: Generator | None) -> list[SampleSet]:
    """The sets to measure: samples of the generator, or without one the images of --images."""
    if generator is None:
        return [SampleSet(images_of(values))]
    return generated_sample_sets(
        generator, count=values.num_samples, cfg_scales=scales_of(values), seeds=seeds_of(values)
    )


def images_of(values: Any) -> ImageSet:
    """The images of --images. Prints what was found."""
    images = open_images(values.images, split=values.split, size=values.image_size)
    if processes.is_main_process():
        print("\n".join(describe_images(images)), flush=True)
    return images


def scales_of(values: Any) -> list[float]:
    """The guidance scales of --cfg_scales; empty without it."""
    return _numbers(values.cfg_scales, float, "cfg_scales")


def seeds_of(values: Any) -> list[int]:
    """The seeds of --seeds; empty without it."""
    return _numbers(values.seeds, int, "seeds")


def _settings_of(values: Any) -> Settings:
    names = tuple(dict.fromkeys(values.figures or _METRICS))
    for name in names:
        if name not in _METRICS:
            raise UserError(f"--figures may be {', '.join(_METRICS)}; found {name!r}")
    if not 0 <= values.max_excluded <= 1:
        raise UserError(f"--max_excluded is a share from 0 to 1; found {values.max_excluded}")
    return Settings(names, values.k, values.max_excluded)


def _words_of(mode: str) -> str:
    return f"--{mode}" if mode in SOURCES else mode


def _numbers(words: Sequence[str], kind: type, name: str) -> list:
    """The different numbers of a list flag."""
    try:
        found = [kind(word) for word in words]
    except ValueError:
        raise UserError(f"--{name} must be numbers with commas; found {','.join(words)}") from None
    if len(set(found)) < len(found) or any(not 0 <= x < 2**32 for x in found):
        raise UserError(f"--{name} must be different numbers, not negative; found {found}")
    if kind is float and 0.0 in found:
        raise UserError(f"--{name} must be above 0; found {found}")
    return found
