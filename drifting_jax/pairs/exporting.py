"""Writes a generator of pairs as a folder that samples without this package, with JAX alone."""

import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from drifting_jax import __version__
from drifting_jax.compiler.exported import PLATFORMS, exported
from drifting_jax.files import check_new, new_folder, write_bytes, write_json, write_npz
from drifting_jax.pairs import exported_pairs
from drifting_jax.pairs.generator import BATCH_SIZE, PairGenerator, load_pairs, make_pair_sampler
from drifting_jax.steps.sampling import to_uint8
from drifting_jax.surroundings import settled_jax


def export(name: str, out: Path, *, ema_decay: float | None, step: int | None) -> str:
    """Exports the generator of a workdir or of a folder for the Hub; returns a line for a person.

    Raises:
      UserError: as `load_pairs` and `export_pairs`.
    """
    generator = load_pairs(name, ema_decay=ema_decay, step=step)
    export_pairs(generator, out)
    return (
        f"sampler of step {generator.step}: {out}; try python {out}/sample.py --conditions=FILE.npz"
    )


@settled_jax()
def export_pairs(generator: PairGenerator, folder: Path) -> None:
    """Writes a folder that samples as the generator does, bit for bit on a CPU.

    It holds sampler.jax (`jax.export`), weights.npz, config.json with the shapes, and sample.py.

    Args:
      generator: with parameters on the host.
      folder: it is made, and must not exist.

    Raises:
      UserError: the folder exists, or the package flatbuffers is missing.
    """
    check_new(folder)
    program = _exported(generator)
    with new_folder(folder) as partial:
        write_bytes(partial / "sampler.jax", program)
        write_npz(partial / "weights.npz", flatten_dict(generator.params, sep="/"))
        shutil.copyfile(exported_pairs.__file__, partial / "sample.py")
        record = {
            "sampler": "images of conditions, of a Drifting Model (arXiv 2602.04770), "
            "one evaluation each",
            "jax": jax.__version__,
            "drifting_jax": __version__,
            "platforms": PLATFORMS,
            "step": generator.step,
            "ema_decay": generator.ema_decay,
            "rows": BATCH_SIZE,
            "pairs": generator.facts.record(),
        }
        write_json(partial / "config.json", record)


def _exported(generator: PairGenerator) -> bytes:
    """The sampler for one device of any of `PLATFORMS`; the scaling of conditions is in it."""
    facts = generator.facts
    sampler = make_pair_sampler(generator.model, facts.shapes)

    def sample(weights: dict[str, jax.Array], *inputs: Any) -> tuple[jax.Array, jax.Array]:
        found = sampler(unflatten_dict(weights, sep="/"), facts.scaling, *inputs)
        finite = jnp.isfinite(found).all(axis=(1, 2, 3))
        return to_uint8(found) if facts.makes_bytes else found, finite

    of = jax.ShapeDtypeStruct
    flat = flatten_dict(generator.params, sep="/")
    weights = {name: of(x.shape, x.dtype) for name, x in flat.items()}
    conditions = of((BATCH_SIZE, *facts.shapes.condition), jnp.float32)
    indices = of((BATCH_SIZE,), jnp.uint32)
    program, _ = exported(sample, weights, conditions, indices, of((), jnp.uint32))
    return program
