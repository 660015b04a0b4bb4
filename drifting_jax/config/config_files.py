"""What config files need besides their fields: variants, files beside them, and the workdir."""

import importlib.util
import re
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from drifting_jax.errors import UserError


def check_variant(path: str, variant: str, known: Iterable[str]) -> None:
    """Checks that a config file has a variant.

    Args:
      path: `__file__` of the config file.
      variant: the part of --config after the colon.
      known: the variants that the file has.

    Raises:
      UserError: The file has no such variant; the message lists those it has.
    """
    if variant not in (known := list(known)):
        raise UserError(
            f"configs/{Path(path).name} has no variant {variant!r}; it knows {', '.join(known)}"
        )


def file_beside(path: str | Path, name: str) -> ModuleType:
    """Returns another config file of the same folder as a module; config folders are no packages.

    Args:
      path: `__file__` of the config file.
      name: of the other file, such as "imagenet_latent.py".
    """
    spec = importlib.util.spec_from_file_location(Path(name).stem, Path(path).with_name(name))
    assert spec is not None and spec.loader is not None  # as for every name that ends in .py
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def default_workdir(config_path: str) -> Path:
    """Returns runs/<config>[_<variant>] for the value of --config, "path/<config>.py[:variant]"."""
    path, _, variant = config_path.partition(":")
    name = "_".join(filter(None, [Path(path).stem, re.sub(r"[^\w.-]+", "-", variant)]))
    return Path("runs") / name
