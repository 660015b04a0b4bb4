"""Writes a policy as a folder that acts without this package, with JAX alone."""

import shutil
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from drifting_jax import __version__
from drifting_jax.errors import UserError
from drifting_jax.files import new_folder, write_bytes, write_json, write_npz
from drifting_jax.policy import exported_policy
from drifting_jax.policy.policy import Policy, make_policy_sampler
from drifting_jax.surroundings import settled_jax

PLATFORMS = ("cpu", "cuda", "tpu")


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
    if folder.exists():
        raise UserError(f"--out must be a new folder; {folder} exists")
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
    found = jax.export.export(jax.jit(sample), platforms=PLATFORMS)(
        weights,
        of((rows, *policy.observation_shape), jnp.float32),
        of((rows,), jnp.uint32),
        of((), jnp.uint32),
    )
    try:
        return bytes(found.serialize())
    except ImportError as error:
        raise UserError(f"{error}: pip install -e '.[export]'") from None
