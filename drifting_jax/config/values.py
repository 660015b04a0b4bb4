"""The values of a config as plain Python: nested by section, or flat with dotted names."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict


def plain(value: Any) -> Any:
    """Returns dicts for ConfigDicts and tuples for lists, with references followed."""
    if isinstance(value, ConfigDict):
        value = value.copy_and_resolve_references().to_dict()
    if isinstance(value, Mapping):
        return {name: plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return tuple(plain(entry) for entry in value)
    return value


def flat(values: Mapping[str, Any] | ConfigDict, prefix: str = "") -> dict[str, Any]:
    """Returns {"a.b": 1} for {"a": {"b": 1}}; an empty section vanishes."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping | ConfigDict):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns {"a": {"b": 1}} for {"a.b": 1}."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        *sections, last = name.split(".")
        inner = found
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[last] = value
    return found
