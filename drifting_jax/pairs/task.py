"""What `training.tasks` looks up for the task "pairs"."""

from drifting_jax.pairs.exporting import export
from drifting_jax.pairs.hub_folder import write_for_hub
from drifting_jax.pairs.training import program, train

__all__ = ["export", "program", "train", "write_for_hub"]
