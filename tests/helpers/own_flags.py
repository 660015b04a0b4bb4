"""Commands and benchmarks with flags of their own, apart from those of the process."""

import functools
import importlib.util
from pathlib import Path

import absl
import absl.app  # before the flags of a script are apart: it has some itself
import pytest
from absl import flags


class Flags:
    """absl's flags, in a set of their own."""

    def __init__(self):
        self.FLAGS = flags.FlagValues()

    def __getattr__(self, name):
        return functools.partial(getattr(flags, name), flag_values=self.FLAGS)


def run_command(modules, *words):
    """Runs the main function of a command with a command line.

    `modules` is that of the command, or a list of it and of the others that define its flags.
    """
    module, *others = modules if isinstance(modules, list) else [modules]
    stand_in = Flags()
    with pytest.MonkeyPatch.context() as patch:
        for one in (module, *others):
            patch.setattr(one, "flags", stand_in)
        module.define_flags()
        return module.main(stand_in.FLAGS(["command", *words]))


def load_script(path, *words):
    """The module of a script that defines flags when it is imported, with a command line."""
    path = Path(path)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(path.parent))
        patch.setattr(absl, "flags", stand_in := Flags())
        spec.loader.exec_module(module)
    stand_in.FLAGS(["script", *words])
    return module
