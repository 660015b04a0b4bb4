"""A policy that learns from your own demonstrations (5.3).

    python main.py --config=configs/policy.py --config.data.path=demos.npz

The file holds the arrays observations [T, d_o], actions [T, d_a] and episode_ends [E]; see
docs/control.md.
"""

from drifting_jax.config import base_config


def get_config():
    """Returns the config; `drifting_jax.config.fields` lists every field."""
    return base_config("policy")
