"""What `training.tasks` looks up for the task "policy"."""

from drifting_jax.policy.exporting import export
from drifting_jax.policy.hub_folder import write_for_hub
from drifting_jax.policy.training import program, train

__all__ = ["export", "program", "train", "write_for_hub"]
