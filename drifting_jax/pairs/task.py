"""What `training.tasks` looks up for the task "pairs"."""

from typing import Any

from drifting_jax.errors import UserError
from drifting_jax.pairs.training import program, train

__all__ = ["export", "program", "train", "write_for_hub"]


def export(name: str, *_: Any, **__: Any) -> str:
    """Raises UserError: such generators are sampled from their workdir."""
    raise UserError(
        f"{name} is a run of task 'pairs'; only generators of classes and policies can be exported "
        "or written for the Hub: python -m drifting_jax.sample --conditions=FILE.npz samples it"
    )


write_for_hub = export
