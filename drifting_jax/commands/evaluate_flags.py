"""The flags of `evaluate`, and which of them go together."""

from collections.abc import Sequence
from typing import Any

from absl import flags

from drifting_jax.errors import UserError
from drifting_jax.evaluation.evaluator import NEEDS, Settings

SUBJECTS = ("workdir", "weights", "images")
SMALL, REFERENCE = "a run of small images", "reference"
# What each flag goes with, besides those that go with everything.
_GOES_WITH = {
    "workdir": ("workdir", SMALL),
    "weights": ("weights",),
    "images": ("images", REFERENCE),
    **dict.fromkeys(("step", "ema_decay"), ("workdir", SMALL)),
    **dict.fromkeys(("cfg_scales", "seeds"), ("workdir", "weights", SMALL)),
    **dict.fromkeys(("num_samples", "vae", "training_images"), ("workdir", "weights")),
    **dict.fromkeys(("split", "image_size"), ("images", REFERENCE)),
    **dict.fromkeys(("reference", "k"), SUBJECTS),
    **dict.fromkeys(
        ("figures", "inception", "dinov2", "max_excluded", "keep_features", "out", "batch_size"),
        (*SUBJECTS, REFERENCE),
    ),
    "keep": (REFERENCE,),
}


def define_flags() -> None:
    """Registers the command line's flags."""
    flags.DEFINE_string("workdir", "", "Directory of a run that is measured.")
    flags.DEFINE_string("weights", "", "Instead: an artifact of the paper's release, or ours.")
    flags.DEFINE_string("images", "", "Instead: a folder, a data set or an .npz of images.")
    flags.DEFINE_enum("split", "train", ("train", "test"), "Of --images.")
    flags.DEFINE_integer("image_size", 0, "Side of centre crops of --images; 0: as they are.")
    flags.DEFINE_string("vae", "", "What decodes latents: folder or hf://….")
    flags.DEFINE_float("ema_decay", None, "Which moving average; default: the config's.")
    flags.DEFINE_integer("step", None, "Of the checkpoint; default: the newest.", lower_bound=0)
    flags.DEFINE_list("cfg_scales", [], "Guidance scales alpha; default: the config's, or 1.")
    flags.DEFINE_list("seeds", [], "Of the noise, such as 0,1,2; default: the config's, or 0.")
    flags.DEFINE_integer("num_samples", 50000, "Samples of each alpha and seed.", lower_bound=2)
    flags.DEFINE_string("reference", "", "Statistics of real images, an .npz file.")
    flags.DEFINE_list("figures", [], f"Some of {', '.join(NEEDS)}; default: all that can be made.")
    flags.DEFINE_integer("k", 5, "Neighbours that make a ball.", lower_bound=1)
    flags.DEFINE_string("inception", "", "Weights of Inception; default: the usual folder.")
    flags.DEFINE_string("dinov2", "", "Weights of DINOv2; default: the usual folder.")
    flags.DEFINE_string("training_images", "", "For nearest neighbours; default: the config's.")
    flags.DEFINE_integer("batch_size", 64, "Images measured at once, a device.", lower_bound=1)
    flags.DEFINE_float("max_excluded", 0.001, "Share of images that may be left out as damaged.")
    flags.DEFINE_bool("keep_features", False, "Leave features on the disk, to be used again.")
    flags.DEFINE_integer("keep", 10000, "reference: features kept of each network.", lower_bound=2)
    flags.DEFINE_string("out", "", "Folder of the figures; default: <workdir>/evaluation.")
    flags.DEFINE_string("coordinator", None, "host:port of process 0, if several.")
    flags.DEFINE_integer("num_processes", None, "Processes of the job, if several.")
    flags.DEFINE_integer("process_id", None, "Number of this process, if several.")


def check_flags(values: Any, mode: str) -> None:
    """Refuses what would be ignored.

    Args:
      values: absl's flags.
      mode: one of `SUBJECTS`, `SMALL` or `REFERENCE`.

    Raises:
      UserError: a flag that does not go with what is measured.
    """
    for name, modes in _GOES_WITH.items():
        if values[name].present and mode not in modes:
            listed = " and ".join(map(_words_of, modes))
            raise UserError(f"--{name} goes with {listed}, not with {_words_of(mode)}")


def _words_of(mode: str) -> str:
    return f"--{mode}" if mode in SUBJECTS else mode


def settings_of(values: Any) -> Settings:
    """The figures that are wanted, and how.

    Raises:
      UserError: an unknown figure, or a share that is none.
    """
    names = tuple(dict.fromkeys(values.figures or NEEDS))
    for name in names:
        if name not in NEEDS:
            raise UserError(f"--figures may be {', '.join(NEEDS)}; found {name!r}")
    if not 0 <= values.max_excluded <= 1:
        raise UserError(f"--max_excluded is a share from 0 to 1; found {values.max_excluded}")
    return Settings(names, values.k, values.max_excluded)


def numbers(words: Sequence[str], kind: type, name: str) -> list:
    """The numbers of a list flag, all different.

    Raises:
      UserError: something else.
    """
    try:
        found = [kind(word) for word in words]
    except ValueError:
        raise UserError(f"--{name} must be numbers with commas; found {','.join(words)}") from None
    if len(set(found)) < len(found) or any(not 0 <= x < 2**32 for x in found):
        raise UserError(f"--{name} must be different numbers, not negative; found {found}")
    if kind is float and 0.0 in found:
        raise UserError(f"--{name} must be above 0; found {found}")
    return found
