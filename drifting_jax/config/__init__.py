"""Configs: every field with its default, the checks, and the copy that a workdir keeps."""

from drifting_jax.config.base import (
    ConfigDict,
    base_config,
    check_resume,
    check_variant,
    default_workdir,
    file_beside,
    load_config,
    resolve,
    save_config,
    validate,
    versions,
)

__all__ = [
    "ConfigDict",
    "base_config",
    "check_resume",
    "check_variant",
    "default_workdir",
    "file_beside",
    "load_config",
    "resolve",
    "save_config",
    "validate",
    "versions",
]
