"""Writes a policy as a folder that acts without this package, with JAX alone."""

import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from drifting_jax import __version__
from drifting_jax.compiler.exported import PLATFORMS, exported
from drifting_jax.files import check_new, new_folder, write_bytes, write_json, write_npz
from drifting_jax.policy import exported_policy
from drifting_jax.policy.policy import Policy, load_policy, make_policy_sampler
from drifting_jax.surroundings import settled_jax


def export(name: str, out: Path, *, ema_decay: float | None, step: int | None) -> str:
    """Exports the policy of a workdir or of a folder for the Hub; returns a line for a person.

    Raises:
      UserError: as `load_policy` and `export_policy`.
    """
    policy = load_policy(name, ema_decay=ema_decay, step=step)
    export_policy(policy, out)
    return f"policy of step {policy.step}: {out}; {out}/policy.py says how to act"


@settled_jax()
def export_policy(policy: Policy, folder: Path) -> None:
    """Writes a folder that acts as the policy does, bit for bit on a CPU.

    It holds policy.jax (`jax.export`), weights.npz, config.json with the shapes, and policy.py.

    Args:
      policy: with parameters on the host.
      folder: it is made, and must not exist.

    Raises:
      UserError: the folder exists, or the package flatbuffers is missing.
    """
    check_new(folder)
    program = _exported(policy)
    horizons, sizes, executed = policy.horizons, policy.sizes, policy.horizons.executed
    with new_folder(folder) as partial:
        write_bytes(partial / "policy.jax", program)
        write_npz(partial / "weights.npz", flatten_dict(policy.params, sep="/"))
        shutil.copyfile(exported_policy.__file__, partial / "policy.py")
        record = {
            "policy": "actions of a Drifting Model (arXiv 2602.04770), one evaluation each",
            "jax": jax.__version__,
            "drifting_jax": __version__,
            "platforms": PLATFORMS,
            "step": policy.step,
            "ema_decay": policy.ema_decay,
            "rows": policy.batch_size,
            "observations": [horizons.observation, sizes.observation],
            "actions": [horizons.prediction, sizes.action],
            "executed": [executed.start, executed.stop],
            "scaling": policy.scalings.record(),
        }
        write_json(partial / "config.json", record)


def _exported(policy: Policy) -> bytes:
    """The sampler for one device of any of `PLATFORMS`; its scaling is in it."""
    sampler = make_policy_sampler(policy.model, policy.horizons)

    def sample(weights: dict[str, jax.Array], *inputs: Any) -> jax.Array:
        return sampler(unflatten_dict(weights, sep="/"), policy.scalings, *inputs)

    of, rows = jax.ShapeDtypeStruct, policy.batch_size
    flat = flatten_dict(policy.params, sep="/")
    weights = {name: of(x.shape, x.dtype) for name, x in flat.items()}
    observations = of((rows, *policy.observation_shape), jnp.float32)
    program, _ = exported(
        sample, weights, observations, of((rows,), jnp.uint32), of((), jnp.uint32)
    )
    return program
