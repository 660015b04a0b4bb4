"""Configs with fields that are wrong on purpose."""

from ml_collections import ConfigDict

from drifting_jax.config import base_config


def changed(task: str = "generator", **fields) -> ConfigDict:
    """The base config with "section__field" set, past the lock and the types of ConfigDict."""
    values = base_config(task).to_dict()
    for name, value in fields.items():
        *sections, last = name.split("__")
        section = values
        for part in sections:
            section = section[part]
        section[last] = value
    return ConfigDict(values)
