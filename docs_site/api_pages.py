"""The pages of the API reference, as directives of Sphinx's autodoc, which reads the docstrings."""

import re
from collections.abc import Iterable
from pathlib import Path

import drifting_jax as dj

# Of flax's dataclasses, `replace` is flax's own.
OPTIONS = ("members:", "exclude-members: replace")
METHOD = Path(__file__).parents[1] / "drifting_jax" / "method"


def public_groups() -> dict[str, list[str]]:
    """Returns {heading: public names}, from the list in the docstring of the package."""
    found = {}
    for item in re.findall(r"^\* (.*?)\.$", dj.__doc__, re.MULTILINE | re.DOTALL):
        names, _, heading = item.replace("\n", " ").rpartition(": ")
        found[heading[0].upper() + heading[1:]] = re.findall(r"`(\w+)`", names)
    return found


def directive(kind: str, name: str, options: Iterable[str] = ()) -> list[str]:
    """Returns the lines of an autodoc directive."""
    return ["```{eval-rst}", f".. auto{kind}:: {name}", *(f"   :{o}" for o in options), "```", ""]


def public() -> str:
    """Returns the reference of the public names."""
    lines = []
    for heading, names in public_groups().items():
        lines += [f"## {heading}", ""]
        for name in names:
            kind = "class" if isinstance(getattr(dj, name), type) else "function"
            lines += [f"### `{name}`", "", *directive(kind, f"drifting_jax.{name}")]
    return "\n".join(lines)


def method_modules() -> list[str]:
    """Returns the modules of `drifting_jax/method/`: those of the folder before its subfolders."""
    paths = [path for path in METHOD.rglob("*.py") if path.name != "__init__.py"]
    paths.sort(key=lambda path: (len(path.parts), path))
    return [".".join(path.relative_to(METHOD.parent).with_suffix("").parts) for path in paths]


def method() -> str:
    """Returns a page with every module of `drifting_jax/method/`."""
    lines = [
        "# Modules of the method",
        "",
        "Every module of `drifting_jax/method/`, by its docstrings. Only the names of the"
        " [public API](api.md) keep their places between versions.",
        "",
    ]
    for name in method_modules():
        lines += [f"## `{name}`", "", *directive("module", f"drifting_jax.{name}", OPTIONS)]
    return "\n".join(lines)
