"""The config of a toy that trains in seconds on one device."""

from drifting_jax.config import base_config, resolve


def config(**changes):
    """A small toy; fields change as train__num_steps=3."""
    found = base_config("toy")
    small = {
        "log_every": 50,
        "mesh.data": 1,
        "data.num_samples": 2000,
        "start": "collapsed",
        "model.noise_features": 8,
        "model.widths": (32, 32),
        "drift.temperatures": (0.05, 0.2),
        "optim.learning_rate": 5e-3,
        "optim.schedule": "constant",
        "optim.warmup_steps": 10,
        "train.num_steps": 300,
        "train.generated": 64,
        "train.positives": 64,
        "train.save_every": 150,
        "train.ema_decays": (0.9,),
        "eval.ema_decay": 0.9,
        "eval.num_samples": 512,
        "eval.directions": 16,
    }
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    found.update_from_flattened_dict(small | changes)
    return resolve(found)
