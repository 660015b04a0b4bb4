"""A package that takes the place of wandb or trackio and records what it is told."""

import sys
import types

import pytest

Calls = list[tuple[str, tuple, dict]]


class Page:
    """What `init` returns; log, define_metric and finish are recorded in `calls`."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    def __getattr__(self, name):
        return lambda *args, **kwargs: self._calls.append((name, args, kwargs))


def install(patch: pytest.MonkeyPatch, name: str, *, page: type = Page) -> Calls:
    """Returns the calls (name, arguments, keyword arguments) of the package, in their order."""
    calls: Calls = []
    package = types.ModuleType(name)

    def init(**kwargs):
        calls.append(("init", (), kwargs))
        return page(calls)

    package.init = init
    package.Settings = dict
    package.Image = lambda picture: ("image", picture.mode, picture.size)
    patch.setitem(sys.modules, name, package)
    return calls


def logged(calls: Calls) -> list[dict]:
    """The lines that were logged; trackio's have their step under "step"."""
    return [args[0] | kwargs for name, args, kwargs in calls if name == "log"]
