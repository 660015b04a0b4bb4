"""What the model cards of folders for the Hub share, in Markdown."""

import dataclasses
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from drifting_jax.config import ConfigDict
from drifting_jax.config.values import flat, plain
from drifting_jax.errors import UserError
from drifting_jax.method.fields.options import DriftOptions
from drifting_jax.method.fields.table import field_named

PAPER = "[Drifting Model](https://arxiv.org/abs/2602.04770)"


def check_license(name: str) -> None:
    """Raises UserError unless a licence is empty or a name."""
    if name and not re.fullmatch(r"[\w.+-]+", name):
        raise UserError(f"--license must be a name such as apache-2.0; found {name!r}")


def card(parts: Iterable[str], *, tag: str, license_name: str) -> str:
    """Returns a card: the header that the Hub reads, paragraphs, and the licence.

    Args:
      parts: paragraphs.
      tag: what the Hub sorts the model by, such as "image-generation".
      license_name: such as "apache-2.0"; "" if it is not stated.
    """
    header = ["---", "library_name: drifting_jax", f"tags: [drifting-model, {tag}, jax]"]
    header += [f"license: {license_name}"] if license_name else []
    licence = ["## Licence", license_name or "Not stated."]
    return "\n\n".join(["\n".join([*header, "---"]), *parts, *licence]) + "\n"


def recipe(config: ConfigDict, names: Sequence[str], *, step: int, ema_decay: float) -> str:
    """Returns which weights these are, and a table of the fields of a config that it has.

    Options that the drifting field does not read are left out.

    Args:
      config: of the run.
      names: of the fields, dotted.
      step: of the training.
      ema_decay: of the moving average.
    """
    values = flat(plain(config))
    start = values.get("model.init_from", "")
    if not start.startswith("hf://"):  # a folder means nothing to others
        values["model.init_from"] = Path(start).name
    unread = _unread(values["drift.field"])
    shown = [name for name in names if values.get(name, "") != "" and name not in unread]
    rows = [f"| `{name}` | {values[name]} |" for name in shown]
    average = f"Step {step}, the moving average of decay {ema_decay:g}."
    return "\n".join([average, "", "| field | value |", "|---|---|", *rows])


def _unread(name: str) -> set[str]:
    """The fields of config.drift that a drifting field does not read."""
    field = field_named(name)
    read = field.options - (set() if field.has_temperature else {"temperatures"})
    return {f"drift.{option.name}" for option in dataclasses.fields(DriftOptions)} - {
        f"drift.{option}" for option in read
    }
