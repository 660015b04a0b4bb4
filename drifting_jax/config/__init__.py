"""Configs: every field with its rules, the checks, and the copy that a workdir keeps."""

from ml_collections import ConfigDict

from drifting_jax.config.base import base_config, fields, resolve, sections, validate
from drifting_jax.config.config_files import check_variant, default_workdir, file_beside
from drifting_jax.config.defaults import FSDP_RULES, PAPER_ENCODER
from drifting_jax.config.field import Field, Section
from drifting_jax.config.stored import (
    check_resume,
    load_config,
    save_config,
    values_to_keep,
    versions,
    with_values,
)

__all__ = [
    "FSDP_RULES",
    "PAPER_ENCODER",
    "ConfigDict",
    "Field",
    "Section",
    "base_config",
    "check_resume",
    "check_variant",
    "default_workdir",
    "fields",
    "file_beside",
    "load_config",
    "resolve",
    "save_config",
    "sections",
    "validate",
    "values_to_keep",
    "versions",
    "with_values",
]
