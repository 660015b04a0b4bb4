"""The reference of all config fields: `python docs_site/config_tables.py` prints its Markdown."""

import ast
import re
from pathlib import Path

from drifting_jax.config import Field, Section, sections
from drifting_jax.config.defaults import SECTIONS
from drifting_jax.method.fields.table import FIELDS
from drifting_jax.models.generators import GENERATORS
from drifting_jax.weights.pixel_encoders import ENCODERS

ROOT = Path(__file__).parents[1]
HEAD = (
    "| field | default | type and values | meaning | on resume |",
    "|---|---|---|---|---|",
)
# Names that tables of the package hold, not the fields themselves.
TABLES = {
    "task": tuple(SECTIONS),
    "drift.field": tuple(FIELDS),
    "model.kind": tuple(GENERATORS),
    "extra_encoder.kind": ("none", *ENCODERS),
    "pixel_encoders.kinds": tuple(ENCODERS),
}


def code(text: str) -> str:
    """Returns text as code in a table cell."""
    return f"`{text}`".replace("|", "\\|")


def prose(text: str) -> str:
    """Returns a sentence for a table cell: quoted names and file names with signs as code."""
    escaped = text.replace("|", "\\|").replace("*", "\\*")
    return re.sub(r'"(\w+)"|(\S*<\w+>\S*)', lambda found: code(found[1] or found[2]), escaped)


def type_of(field: Field) -> str:
    """Returns the name of a field's type: that of its default."""
    if field.is_path:
        return "path" if isinstance(field.default, str) else "tuple of paths, may be empty"
    if isinstance(field.default, tuple):
        entry = f" of {type(field.default[0]).__name__}" if field.default else ""
        return f"tuple{entry}{', may be empty' if field.may_be_empty else ''}"
    return type(field.default).__name__


def bounds_of(field: Field) -> str:
    """Returns the bounds of a number, or of each number of a tuple: "above 0, at most 1"."""
    low = "above 0" if field.minimum is None else f"at least {field.minimum:,}"
    parts = [low]
    if field.maximum is not None:
        parts.append(f"at most {field.maximum:,}")
    if field.below is not None:
        parts.append(f"below {field.below:,}")
    return ", ".join(parts) + "".join(f", or {number}" for number in field.also)


def values_of(name: str, field: Field) -> str:
    """Returns the type of a field, with its choices or bounds."""
    if choices := TABLES.get(name, field.choices):
        return f"{type_of(field)}: {', '.join(code(choice) for choice in choices)}"
    entry = field.default[:1] if isinstance(field.default, tuple) else (field.default,)
    is_number = any(isinstance(value, int | float) for value in entry)
    if isinstance(field.default, bool) or not is_number:
        return type_of(field)
    return f"{type_of(field)}; {bounds_of(field)}"


def default_of(field: Field) -> str:
    """Returns the default, as Python and the command line take it."""
    return code(f'"{field.default}"' if isinstance(field.default, str) else repr(field.default))


def row(name: str, field: Field) -> str:
    """Returns the line of a field in the table of its section."""
    cells = (
        code(name),
        default_of(field),
        values_of(name, field),
        prose(field.doc),
        field.on_resume,
    )
    return f"| {' | '.join(cells)} |"


def table(fields: dict[str, Field]) -> list[str]:
    """Returns the lines of a table of fields, by their dotted names."""
    return [*HEAD, *(row(name, field) for name, field in fields.items()), ""]


def section_lines(part: Section, prefix: str = "") -> list[str]:
    """Returns the heading, the sentence and the table of a section."""
    heading = f"`{part.name}`" if part.name else "Fields without a section"
    return [f"### {prefix}{heading}", "", part.doc, "", *table(part.dotted())]


def different(task: str, other: str) -> dict[str, Field]:
    """Returns the fields of a task that another task lacks or shows otherwise."""
    of_other = {name: field for part in sections(other) for name, field in part.dotted().items()}
    return {
        name: field
        for part in sections(task)
        for name, field in part.dotted().items()
        if name not in of_other or row(name, field) != row(name, of_other[name])
    }


def config_files() -> list[str]:
    """Returns a table of the files of configs/, with the first sentence of each docstring."""
    lines = ["| file | what it trains |", "|---|---|"]
    for path in sorted((ROOT / "configs").glob("*.py")):
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        lines.append(f"| {code(f'configs/{path.name}')} | {docstring.partition(chr(10))[0]} |")
    return [*lines, ""]


def markdown() -> str:
    """Returns all tables: the config files, then every field of every task."""
    lines = ["## The config files", "", *config_files(), "## Generator", ""]
    lines += [line for part in sections("generator") for line in section_lines(part)]
    lines += [
        "## Encoder",
        "",
        "An encoder by itself (`task` is `encoder`) has the sections of a generator. These fields"
        " differ:",
        "",
        *table(different("encoder", "generator")),
    ]
    for task in (name for name in SECTIONS if name not in ("generator", "encoder")):
        lines += [f"## {task.capitalize()}", ""]
        for part in sections(task):
            lines += section_lines(part, f"{task.capitalize()}: ")
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown())
