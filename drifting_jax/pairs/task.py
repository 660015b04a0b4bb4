"""What `training.tasks` looks up for the task "pairs"."""

from drifting_jax.pairs.training import program, train

__all__ = ["program", "train"]
