"""Writes a sampler that needs no drifting_jax: `python -m drifting_jax.export --workdir=… --out=…`.

    python -m drifting_jax.export --workdir=runs/digits --out=sampler
    python sampler/sample.py --classes=3,7 --per_class=8 --out=samples.png

Or of weights without a run: `--weights=FOLDER`. The folder samples with JAX alone, on a CPU, a GPU
or a TPU; with the extra `onnx` it also holds the network as ONNX.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from drifting_jax.commands.command_line import run_program
from drifting_jax.commands.exporting import export_generator
from drifting_jax.commands.generator_choice import (
    chosen_generator,
    define_average_flags,
    define_source_flags,
)
from drifting_jax.errors import UserError


def define_flags() -> None:
    """Registers the command line's flags."""
    define_source_flags()
    define_average_flags()
    flags.DEFINE_string("out", "", "Folder that is written, which must not exist.")


def main(_: Sequence[str]) -> None:
    """Loads, exports, and says what was written."""
    values = flags.FLAGS
    if not values.out:
        raise UserError("expected --out, the folder that is written")
    if Path(values.out).exists():
        raise UserError(f"--out must be a new folder; {values.out} exists")
    generator = chosen_generator(values)
    notes = export_generator(generator, Path(values.out))
    for note in notes:
        print(f"note: {note}")
    print(f"sampler of step {generator.step}: {values.out}; try python {values.out}/sample.py")


def cli() -> None:
    """Entry point of `drifting-export`."""
    define_flags()
    run_program(main)


if __name__ == "__main__":
    cli()
