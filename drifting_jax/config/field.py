"""A field of a config: its default, what it means, and every rule that its value must keep."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

Value = bool | int | float | str | tuple[Any, ...]

OnResume = Literal["fixed", "may change", "may grow"]


@dataclasses.dataclass(frozen=True)
class Field:
    """One field. Its type is the type of its default.

    An int may stand for a float; no other value is converted. A tuple may have any length above
    zero, and its entries have the type of the default's first entry. No field is ever None.

    Attributes:
      default: the value that `base_config` gives.
      doc: what the field means, in one line; reference pages and error messages show it.
      choices: the values that a string may have; empty for any string.
      aliases: {what older configs and command lines say: the value that it means}.
      minimum: the smallest value of a number, or of each number of a tuple. None: above zero.
      maximum: the largest value; None for no bound.
      below: a bound that a number must stay under; None for no bound.
      also: numbers that are allowed besides those between the bounds.
      may_be_empty: whether a tuple may have no entries.
      is_path: whether a string names a file or folder; a `~` in front of it is the home folder.
      check: called with (name, value) for what the other rules cannot say; raises UserError.
      on_resume: what a run that has begun may do with the field: nothing ("fixed"), set it to any
        value ("may change"), or raise it ("may grow").
      absent: the value of a run that was begun before the field existed. None: the default. Such a
        run goes on with it, unless the command sets the field.
    """

    default: Value
    doc: str
    _: dataclasses.KW_ONLY
    choices: tuple[str, ...] = ()
    aliases: Mapping[Any, Value] = dataclasses.field(default_factory=dict)
    minimum: float | None = None
    maximum: float | None = None
    below: float | None = None
    also: tuple[float, ...] = ()
    may_be_empty: bool = False
    is_path: bool = False
    check: Callable[[str, Any], None] | None = None
    on_resume: OnResume = "fixed"
    absent: Value | None = None

    def meant(self, value: Any) -> Any:
        """Returns the value that an alias stands for, and any other value as it is."""
        known = isinstance(value, bool | str) and value in self.aliases
        return self.aliases[value] if known else value


@dataclasses.dataclass(frozen=True)
class Section:
    """Fields with a common prefix.

    Attributes:
      name: the prefix, such as "encoder.train"; empty for fields without one.
      doc: what the fields set, in one sentence.
      fields: the fields by their names without the prefix.
    """

    name: str
    doc: str
    fields: dict[str, Field]

    def dotted(self) -> dict[str, Field]:
        """Returns the fields by their whole names, such as "encoder.train.num_steps"."""
        prefix = f"{self.name}." if self.name else ""
        return {f"{prefix}{name}": field for name, field in self.fields.items()}

    def changed(self, name: str, **attributes: Any) -> "Section":
        """Returns the section with attributes of one of its fields changed."""
        field = dataclasses.replace(self.fields[name], **attributes)
        return dataclasses.replace(self, fields={**self.fields, name: field})

    def with_defaults(self, **defaults: Value) -> "Section":
        """Returns the section with the defaults of some of its fields changed."""
        found = self
        for name, default in defaults.items():
            found = found.changed(name, default=default)
        return found


def section(name: str, doc: str, /, **fields: Field) -> Section:
    """Returns a `Section` of these fields."""
    return Section(name, doc, fields)
