"""Drifting Models (arXiv 2602.04770) in JAX: generators of one evaluation.

    import drifting_jax as dj

    loss, statistics = dj.drifting_loss(generated, positive)

The names below are the public API. Each is imported when it is first used, so that importing the
package is quick and sets up no device. Everything else may move between versions.

* `drifting_field`, `drifting_velocity`, `drifting_loss`, `feature_drifting_loss`, `DriftOptions`,
  `DriftingStatistics`: the method.
* `base_config`, `resolve_config`, `train`: a config, and a run of it in a workdir.
* `load_run`, `load_generator`, `load_network`, `make_sampler`: trained and published networks.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from drifting_jax.config import base_config
    from drifting_jax.config import resolve as resolve_config
    from drifting_jax.method.feature_losses import feature_drifting_loss
    from drifting_jax.method.fields.mean_shift import drifting_field
    from drifting_jax.method.fields.options import DriftOptions
    from drifting_jax.method.fields.velocity import drifting_velocity
    from drifting_jax.method.losses import drifting_loss
    from drifting_jax.method.statistics import DriftingStatistics
    from drifting_jax.steps.sampling import make_sampler
    from drifting_jax.training.restore import load_generator, load_run
    from drifting_jax.training.run import run as train
    from drifting_jax.weights.networks import load_network

__version__ = "0.1.0"

_PUBLIC = {
    "DriftOptions": ("method.fields.options", "DriftOptions"),
    "DriftingStatistics": ("method.statistics", "DriftingStatistics"),
    "base_config": ("config", "base_config"),
    "drifting_field": ("method.fields.mean_shift", "drifting_field"),
    "drifting_velocity": ("method.fields.velocity", "drifting_velocity"),
    "drifting_loss": ("method.losses", "drifting_loss"),
    "feature_drifting_loss": ("method.feature_losses", "feature_drifting_loss"),
    "load_generator": ("training.restore", "load_generator"),
    "load_network": ("weights.networks", "load_network"),
    "load_run": ("training.restore", "load_run"),
    "make_sampler": ("steps.sampling", "make_sampler"),
    "resolve_config": ("config", "resolve"),
    "train": ("training.run", "run"),
}

__all__ = [
    "DriftOptions",
    "DriftingStatistics",
    "base_config",
    "drifting_field",
    "drifting_loss",
    "drifting_velocity",
    "feature_drifting_loss",
    "load_generator",
    "load_network",
    "load_run",
    "make_sampler",
    "resolve_config",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _PUBLIC[name]
    return getattr(importlib.import_module(f"{__name__}.{module}"), attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
