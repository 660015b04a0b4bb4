"""The sections of our docstrings (Args, Attributes, Raises, Returns, Yields) as fields of Sphinx.

Sphinx's own reader of this style (napoleon) takes what stands before a colon in `Returns` for a
type; ours begin with shapes, and may hold a colon anywhere.
"""

import re
from typing import Any

from sphinx.application import Sphinx

NAMED = {"Args:": "param", "Attributes:": "ivar", "Raises:": "raises"}
WHOLE = {"Returns:": "returns", "Yields:": "yields"}
ITEM = re.compile(r"(\*{0,2}\w[\w., ]*): (.*)")


def with_fields(lines: list[str]) -> list[str]:
    """Returns the lines of a docstring with each section as a list of fields."""
    found: list[str] = []
    section = ""
    later: list[str] = []  # fields of the other names of an item, which follow its text
    for line in [*lines, ""]:
        is_item = section in NAMED and line.startswith("  ") and not line.startswith("   ")
        if is_item or not line.startswith("  "):
            found += later
            later = []
        if line in NAMED or line in WHOLE:
            section = line
            found += ["", f":{WHOLE[line]}:"] if line in WHOLE else [""]
        elif not section or not line.startswith("  "):
            section = section if not line else ""
            found.append(line)
        elif is_item:
            first, *later = _fields(NAMED[section], line.strip())
            found.append(first)
        else:
            found.append(f"    {line.strip()}")
    return found


def _fields(kind: str, line: str) -> list[str]:
    """The fields of an item such as "x, y: [g, d] points": one for each name."""
    item = ITEM.fullmatch(line)
    if not item:
        raise ValueError(f"expected 'name: text' in a docstring; found {line!r}")
    first, *others = item[1].split(", ")
    return [f":{kind} {first}: {item[2]}", *(f":{kind} {name}: as {first}" for name in others)]


def _process(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = with_fields(lines)


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("autodoc-process-docstring", _process)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
