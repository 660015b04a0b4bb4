"""Figures that are written to files, whatever matplotlib was told for other programs.

Neither MPLBACKEND nor a matplotlibrc changes them, and no window is ever opened.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_OF_WINDOWS = ("backend", "interactive")  # settings that belong to the program around this one


@contextlib.contextmanager
def own_style() -> Iterator[None]:
    """Context and decorator in which matplotlib has the settings that it comes with."""
    matplotlib = import_matplotlib()
    defaults = matplotlib.rcParamsDefault
    names = [name for name in defaults if not name.startswith(_OF_WINDOWS)]
    with matplotlib.rc_context({name: defaults[name] for name in names}):
        yield


def new_figure(**settings: Any) -> "Figure":
    """Returns an empty figure, which `savefig` writes to a file; settings as of `Figure`."""
    import_matplotlib()
    from matplotlib.figure import Figure

    return Figure(**settings)


def import_matplotlib() -> ModuleType:
    """Returns the package matplotlib.

    Jupyter and Colab set MPLBACKEND to a backend of theirs for every program that a cell starts,
    and matplotlib cannot be imported where that backend is not installed.
    """
    if "matplotlib" not in sys.modules:
        backend = os.environ.pop("MPLBACKEND", "")
        try:
            import matplotlib
        finally:
            if backend:
                os.environ["MPLBACKEND"] = backend
        if backend:
            with contextlib.suppress(ValueError):  # for other users of matplotlib in this program
                matplotlib.rcParams["backend"] = backend
    return sys.modules["matplotlib"]
